package verify

// Outcome is how a check ended.
type Outcome string

// The outcomes. Of several, what differs counts more than what could not be
// checked, and that more than what is the same.
const (
	Same      Outcome = "same"
	Differs   Outcome = "differs"
	Unchecked Outcome = "unchecked" // it could not be checked
	NotKept   Outcome = "not-kept"  // there is nothing of this kind to be checked
)

// Check is one thing that was looked at.
type Check struct {
	Name        string       `json:"check"`   // manifest, configuration, blob, diff-id, record, tree, disk, boot
	Subject     string       `json:"subject"` // a digest, or the name of a pool
	Form        string       `json:"form,omitempty"`
	Outcome     Outcome      `json:"result"`
	Text        string       `json:"text,omitempty"` // for people
	Count       int          `json:"count,omitempty"`
	Differences []Difference `json:"differences,omitempty"` // the first of Count
	Allowed     []Allowed    `json:"allowed,omitempty"`
}

// Report is all that was looked at of an image.
type Report struct {
	Fingerprint string  `json:"fingerprint"`
	Outcome     Outcome `json:"result"`
	Against     string  `json:"against,omitempty"` // what its files were compared with: layers or record
	Checks      []Check `json:"checks"`
}

// Add adds checks and settles how the whole ended.
func (r *Report) Add(checks ...Check) {
	r.Checks = append(r.Checks, checks...)
	r.Outcome = Same
	for _, c := range r.Checks {
		if c.Outcome == Differs || c.Outcome == Unchecked && r.Outcome == Same {
			r.Outcome = c.Outcome
		}
	}
}

// Of makes a check of a comparison.
func (r Result) Of(name, form, subject string) Check {
	c := Check{Name: name, Form: form, Subject: subject, Outcome: Same, Count: r.Count, Differences: r.Differences, Allowed: r.Allowed}
	if r.Count > 0 {
		c.Outcome = Differs
	}
	return c
}
