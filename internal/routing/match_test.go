package routing

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	header := http.Header{"X-Team": {"ml-vision"}, "X-Empty": {""}}
	q := Request{
		Model: "fast", Kind: inference.KindChat, Tenant: "acme", KeyID: "key_1", KeyName: "robot", Header: header.Get,
		Metadata: map[string]string{"job": "night", "blank": ""}, Stream: true, Images: true, PromptTokens: 100,
	}
	for name, c := range map[string]struct {
		match Match
		want  bool
	}{
		"nothing":               {Match{}, true},
		"model as asked":        {Match{Models: []string{"x", "fa*"}}, true},
		"model behind alias":    {Match{Models: []string{"gpt-*"}}, true},
		"another model":         {Match{Models: []string{"claude-*"}}, false},
		"endpoint":              {Match{Endpoints: []string{"embeddings", "chat"}}, true},
		"another endpoint":      {Match{Endpoints: []string{"embeddings"}}, false},
		"tenant":                {Match{Tenants: []string{"ac*"}}, true},
		"another tenant":        {Match{Tenants: []string{"acm"}}, false},
		"key by id":             {Match{Keys: []string{"key_*"}}, true},
		"key by name":           {Match{Keys: []string{"robot"}}, true},
		"another key":           {Match{Keys: []string{"other"}}, false},
		"header":                {Match{Headers: map[string]string{"x-team": "ml-*"}}, true},
		"another header":        {Match{Headers: map[string]string{"x-team": "web-*"}}, false},
		"absent header":         {Match{Headers: map[string]string{"x-none": "*"}}, false},
		"empty header":          {Match{Headers: map[string]string{"x-empty": "*"}}, false},
		"one header of two":     {Match{Headers: map[string]string{"x-team": "*", "x-none": "*"}}, false},
		"metadata":              {Match{Metadata: map[string]string{"job": "n*"}}, true},
		"empty metadata":        {Match{Metadata: map[string]string{"blank": ""}}, true},
		"another metadata":      {Match{Metadata: map[string]string{"job": "day"}}, false},
		"absent metadata":       {Match{Metadata: map[string]string{"none": "*"}}, false},
		"stream":                {Match{Stream: new(true)}, true},
		"no stream":             {Match{Stream: new(false)}, false},
		"tools":                 {Match{Tools: new(true)}, false},
		"no tools":              {Match{Tools: new(false)}, true},
		"images":                {Match{Images: new(true)}, true},
		"no images":             {Match{Images: new(false)}, false},
		"least prompt":          {Match{MinPromptTokens: 100}, true},
		"prompt too short":      {Match{MinPromptTokens: 101}, false},
		"most prompt":           {Match{MaxPromptTokens: 100}, true},
		"prompt too long":       {Match{MaxPromptTokens: 99}, false},
		"all of it":             {Match{Models: []string{"fast"}, Stream: new(true), MinPromptTokens: 1}, true},
		"all of it but for one": {Match{Models: []string{"fast"}, Stream: new(false), MinPromptTokens: 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, c.match.holds(&q, "gpt-4o"))
		})
	}
	require.False(t, (&Match{Headers: map[string]string{"x-team": "*"}}).holds(&Request{}, ""), "no headers at all")
}

func TestWhen(t *testing.T) {
	t.Parallel()
	yes, no := Match{Tenants: []string{"acme"}}, Match{Tenants: []string{"other"}}
	for name, c := range map[string]struct {
		when When
		want bool
	}{
		"always":             {When{}, true},
		"all":                {When{All: []Match{yes, yes}}, true},
		"not all":            {When{All: []Match{yes, no}}, false},
		"any":                {When{Any: []Match{no, yes}}, true},
		"none of any":        {When{Any: []Match{no, no}}, false},
		"none of not":        {When{Not: []Match{no, no}}, true},
		"one of not":         {When{Not: []Match{no, yes}}, false},
		"all and none of":    {When{All: []Match{yes}, Any: []Match{no}}, false},
		"all and any":        {When{All: []Match{yes}, Any: []Match{yes, no}, Not: []Match{no}}, true},
		"all, any, but also": {When{All: []Match{yes}, Any: []Match{yes}, Not: []Match{yes}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, c.when.holds(&Request{Tenant: "acme"}, ""))
		})
	}
}

// What is foreseen from the model alone comes true for every request of that model.
func TestForesee(t *testing.T) {
	t.Parallel()
	r := newRandom(3)
	could, must := 0, 0
	for range 20_000 {
		w, q := r.when(), r.request()
		resolved := r.one("gpt-4o", "mini", q.Model)
		c, m := w.foresee(q.Model, resolved)
		holds := w.holds(&q, resolved)
		if !c {
			require.False(t, holds, "%+v %+v", w, q)
			continue
		}
		could++
		if m {
			must++
			require.True(t, holds, "%+v %+v", w, q)
		}
	}
	require.Greater(t, could, 1000)
	require.Greater(t, must, 100)
}
