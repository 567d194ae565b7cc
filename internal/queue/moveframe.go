package queue

import (
	"math"

	"sluice/internal/inference"
)

func (c *Claim) encode() []byte {
	w := newFrame(96)
	w.run(c.Run)
	w.str(c.Worker)
	w.place(c.Place)
	return w.b
}

func decodeClaim(jobID string, b []byte) (Claim, error) {
	r := openFrame(b)
	c := Claim{JobID: jobID, Run: r.run(), Worker: r.str(), Place: r.place()}
	return c, r.end()
}

func (j *Judgement) encode() []byte {
	w := newFrame(16 + 64*len(j.Tries))
	w.int(int(j.Verdict))
	w.int(j.Attempts)
	w.ownTries(j.Tries)
	return w.b
}

func decodeJudgement(b []byte) (Judgement, error) {
	r := openFrame(b)
	j := Judgement{Verdict: Verdict(r.int()), Attempts: r.int(), Tries: r.ownTries()}
	return j, r.end()
}

func (p *Passed) encode() []byte {
	w := newFrame(128)
	w.run(p.Run)
	w.str(p.Worker)
	w.int(p.Attempts)
	w.ownTries(p.Tries)
	w.place(p.Next)
	return w.b
}

func decodePassed(jobID string, b []byte) (*Passed, error) {
	r := openFrame(b)
	p := &Passed{JobID: jobID, Run: r.run(), Worker: r.str(), Attempts: r.int(), Tries: r.ownTries(), Next: r.place()}
	return p, r.end()
}

func (w *writer) place(p Place) {
	w.uint(p.Seq)
	w.int(len(p.Candidates))
	for _, c := range p.Candidates {
		w.str(c.Provider)
		w.str(c.Model)
		w.int(int(c.On))
	}
}

func (r *reader) place() Place {
	p := Place{Seq: r.uint()}
	n := r.count(3)
	if n > maxCandidates {
		r.fail()
		return p
	}
	for range n {
		c := inference.Candidate{Provider: r.str(), Model: r.str()}
		on := r.int()
		if on > math.MaxUint8 {
			r.fail()
		}
		c.On = inference.Reasons(on)
		p.Candidates = append(p.Candidates, c)
	}
	return p
}

// ownTries frames tries whose texts stand nowhere else in the frame.
func (w *writer) ownTries(tries []inference.Try) {
	var texts map[string]int
	if len(tries) > 0 {
		texts = make(map[string]int)
	}
	w.tries(tries, texts)
}

func (r *reader) ownTries() []inference.Try {
	var texts []string
	return r.tries(&texts)
}
