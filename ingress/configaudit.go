package ingress

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"sluice/internal/adminapi"
	"sluice/store"
)

const auditReload = "config.reload"

func configTarget(file string) string { return "config:" + file }

// AuditReload remembers that a file took force without an operator having asked for it: by
// says why it was read. What takes force on a machine is not for the database to hinder, so
// an audit that is out of reach is told to the log. There is nothing to remember of a file
// that changes nothing.
func (s *Ingress) AuditReload(ctx context.Context, by string, before, after adminapi.ConfigState) {
	was, is := auditedFiles(before, after)
	if was.Hash == is.Hash && len(is.Settings) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	c := change{auditReload, configTarget(after.File), was, is}
	if err := s.remember(ctx, store.Change{Actor: by, At: time.Now()}, c); err != nil {
		s.log.Warn("the audit does not know that the configuration is reloaded", "hash", is.Hash, "error", err)
	}
}

// fileAudit is the file in force as the audit shows it: before and after a reload, with the
// settings that are different by it. There are none if the process had put the file in force
// before an operator told it to. What it will be is known after the reload alone, so an entry
// of its own says that.
type fileAudit struct {
	Hash     string                     `json:"hash"`
	Settings map[string]json.RawMessage `json:"settings,omitempty"` // null: not set
}

func auditedFiles(before, after adminapi.ConfigState) (was, is fileAudit) {
	was = fileAudit{before.Hash, make(map[string]json.RawMessage)}
	is = fileAudit{after.Hash, make(map[string]json.RawMessage)}
	for _, c := range firstIDs(changedSettings(before.Config, after.Config)) {
		was.Settings[c.name], is.Settings[c.name] = auditedValue(c.was), auditedValue(c.is)
	}
	return was, is
}

// auditedBytes bounds a value that the audit shows. A hundred of them fit into an entry.
const auditedBytes = 4 << 10

func auditedValue(value json.RawMessage) json.RawMessage {
	if len(value) > auditedBytes {
		return fmt.Appendf(nil, `"(%d bytes)"`, len(value))
	}
	return value
}

// changedSetting is a setting with its values as JSON. nil: it is not set.
type changedSetting struct {
	name    string
	was, is json.RawMessage
}

// changedSettings returns the settings that have another value, in the order of their names.
// A secret is masked on both sides, so that one that is replaced by another is not among them.
func changedSettings(before, after json.RawMessage) []changedSetting {
	var changed []changedSetting
	var was, is map[string]json.RawMessage
	if json.Unmarshal(before, &was) != nil || json.Unmarshal(after, &is) != nil || was == nil || is == nil {
		return nil
	}
	all := maps.Clone(was)
	maps.Copy(all, is)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if bytes.Equal(was[name], is[name]) {
			continue
		}
		inside := changedSettings(was[name], is[name])
		if len(inside) == 0 {
			changed = append(changed, changedSetting{name, was[name], is[name]})
		}
		for _, one := range inside {
			one.name = name + "." + one.name
			changed = append(changed, one)
		}
	}
	return changed
}
