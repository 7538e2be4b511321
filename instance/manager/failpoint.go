package manager

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// Failpoints make a step of an operation fail on purpose, for tests of what
// comes after. They are named KIND.STEP.before and KIND.STEP.after. The zero
// value makes nothing fail.
type Failpoints map[string]string

// ParseFailpoints reads "NAME=ACTION,NAME=ACTION"; an action is error, kill
// (SIGKILL of this process), or a duration to wait.
func ParseFailpoints(s string) Failpoints {
	if s == "" {
		return nil
	}
	points := Failpoints{}
	for pair := range strings.SplitSeq(s, ",") {
		name, action, _ := strings.Cut(pair, "=")
		points[name] = action
	}
	return points
}

// FailpointNames lists every failpoint there is, in no order, for tests that try
// them all.
func FailpointNames() ([]string, error) {
	names := []string{stillPoint + ".before", stillPoint + ".after"}
	for kind, builder := range New(Config{}).builders() {
		op, err := builder([]byte(`{"Spec":{},"Create":{"Spec":{}}}`))
		if err != nil {
			return nil, fmt.Errorf("cannot list the steps of %s: %w", kind, err)
		}
		for _, s := range op.steps {
			names = append(names, kind+"."+s.name+".before", kind+"."+s.name+".after")
		}
	}
	return names, nil
}

func (f Failpoints) hit(name string) error {
	action, ok := f[name]
	if !ok {
		return nil
	}
	switch action {
	case "error":
		return fmt.Errorf("failpoint %s", name)
	case "kill":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	d, err := time.ParseDuration(action)
	if err != nil {
		return fmt.Errorf("failpoint %s has the unknown action %q", name, action)
	}
	time.Sleep(d)
	return nil
}
