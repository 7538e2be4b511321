package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"brig/instance/fault"
	"brig/instance/manager"
)

// minInterval keeps top from being what uses the host.
const minInterval = 100 * time.Millisecond

func newTop(s *session) *cobra.Command {
	var kind, by string
	var interval time.Duration
	var once bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what running instances use, as it changes",
		Long: `Show what all running instances use of the host, again and again until it is
interrupted: processor time in percent of one processor, memory and processes with
how much they may be, and bytes per second through their networks and from and to
disks. On a terminal the table is kept in place; else there is a new one each time.
--once measures twice, an interval apart, and prints one table.

The memory and the processes of a virtual machine are those of QEMU. With cgroup v1
the kernel does not tell who wrote what goes to disk by way of the page cache, so that
containers write more there than is shown.`,
		Example: "  brig top --interval 5s --sort memory\n  brig top --once -f json | jq -r '.[] | select(.cpu.percent > 90) | .name'",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			order, ok := topOrders[by]
			if !ok {
				return fault.New(fault.Invalid, "cannot sort by %q: want one of %s", by, strings.Join(topKeys, ", "))
			}
			if interval < minInterval {
				return fault.New(fault.Invalid, "cannot measure every %s: want at least %s", interval, minInterval)
			}
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			t := &top{session: s, manager: m, format: f, order: order, interval: interval}
			if once {
				return t.once(cmd.Context())
			}
			err = t.run(cmd.Context())
			if ctx := cmd.Context(); ctx.Err() != nil {
				return exitCode(codeOf(ctx, err)) // which is how it ends
			}
			return err
		},
	}
	formatFlag(cmd, &kind)
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "How long to measure for each table")
	cmd.Flags().BoolVar(&once, "once", false, "Print one table and end")
	cmd.Flags().StringVar(&by, "sort", "cpu", "What to sort by: "+strings.Join(topKeys, ", "))
	cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(topKeys, nothing))
	return cmd
}

// topKeys are what top sorts by: all but the name from the most to the least.
var topKeys = []string{"cpu", "memory", "processes", "network", "disk", "name"}

var topOrders = map[string]func(a, b topLine) int{
	"cpu":       func(a, b topLine) int { return cmp.Compare(b.CPU.Percent, a.CPU.Percent) },
	"memory":    func(a, b topLine) int { return cmp.Compare(b.Memory.Usage, a.Memory.Usage) },
	"processes": func(a, b topLine) int { return cmp.Compare(b.Processes, a.Processes) },
	"network":   func(a, b topLine) int { return cmp.Compare(b.Network.sum(), a.Network.sum()) },
	"disk":      func(a, b topLine) int { return cmp.Compare(b.Disk.sum(), a.Disk.sum()) },
	"name":      func(a, b topLine) int { return 0 },
}

// topLine is what is told of an instance. The names of its JSON are a promise; limits
// are 0 where there is none.
type topLine struct {
	Name           string      `json:"name"`
	Type           string      `json:"type"`
	Pool           string      `json:"pool"`
	Status         string      `json:"status"`
	CPU            topCPU      `json:"cpu"`
	Memory         memoryJSON  `json:"memory"`
	Processes      int         `json:"processes"`
	ProcessesTotal int         `json:"processes_total"`
	Network        networkRate `json:"network"`
	Disk           diskRate    `json:"disk"`
}

// topCPU is in percent of one processor, and in nanoseconds.
type topCPU struct {
	Percent       float64 `json:"percent"`
	LimitPercent  float64 `json:"limit_percent"`
	Usage         int64   `json:"usage"`
	AllocatedTime int64   `json:"allocated_time"`
}

// networkRate and diskRate are in bytes per second.
type networkRate struct {
	Received int64 `json:"bytes_received_per_second"`
	Sent     int64 `json:"bytes_sent_per_second"`
}

func (r networkRate) sum() int64 { return r.Received + r.Sent }

type diskRate struct {
	Read    int64 `json:"bytes_read_per_second"`
	Written int64 `json:"bytes_written_per_second"`
}

func (r diskRate) sum() int64 { return r.Read + r.Written }

// topLines compares two measurements. What runs only in the later one, or has been
// started again in between, has used nothing so far.
func topLines(before, after []manager.Sample, order func(a, b topLine) int) []topLine {
	was := make(map[string]manager.Sample, len(before))
	for _, s := range before {
		was[s.ID] = s
	}
	lines := make([]topLine, 0, len(after))
	for _, s := range after {
		old, ok := was[s.ID]
		if !ok || old.State.PID != s.State.PID {
			old = s
		}
		lines = append(lines, topLineOf(old, s))
	}
	slices.SortFunc(lines, func(a, b topLine) int {
		return cmp.Or(order(a, b), strings.Compare(a.Name, b.Name), strings.Compare(a.Pool, b.Pool))
	})
	return lines
}

func topLineOf(old, s manager.Sample) topLine {
	seconds := s.At.Sub(old.At).Seconds()
	rate := func(was, is int64) float64 {
		if seconds <= 0 || is < was {
			return 0
		}
		return float64(is-was) / seconds
	}
	u := s.Use
	return topLine{
		Name: s.Name, Type: string(s.Type), Pool: s.Pool, Status: string(s.State.Status),
		CPU: topCPU{
			Percent:      rate(int64(old.Use.CPU), int64(u.CPU)) * 100 / float64(time.Second),
			LimitPercent: u.CPULimit.Seconds() * 100,
			Usage:        u.CPU.Nanoseconds(), AllocatedTime: u.CPULimit.Nanoseconds(),
		},
		Memory:    memoryJSON{u.Memory, u.MemoryPeak, u.MemoryLimit, u.Swap, u.SwapLimit},
		Processes: u.Processes, ProcessesTotal: u.ProcessLimit,
		Network: networkRate{int64(rate(old.Received, s.Received)), int64(rate(old.Sent, s.Sent))},
		Disk:    diskRate{int64(rate(old.Use.Read, u.Read)), int64(rate(old.Use.Written, u.Written))},
	}
}

// topTable shows use and limit in one column for people, and in plain numbers and
// columns of their own if exact.
func topTable(lines []topLine, exact bool) *table {
	if exact {
		t := &table{header: []string{"NAME", "CPU", "CPU LIMIT", "MEMORY", "MEMORY LIMIT", "PROCESSES", "PROCESS LIMIT", "RECEIVED", "SENT", "READ", "WRITTEN"}}
		for _, l := range lines {
			cells := []string{l.Name, percent(l.CPU.Percent), percent(l.CPU.LimitPercent)}
			for _, n := range []int64{l.Memory.Usage, l.Memory.Total, int64(l.Processes), int64(l.ProcessesTotal), l.Network.Received, l.Network.Sent, l.Disk.Read, l.Disk.Written} {
				cells = append(cells, strconv.FormatInt(n, 10))
			}
			t.add(cells...)
		}
		return t
	}
	t := &table{header: []string{"NAME", "CPU %", "MEMORY", "PROCESSES", "RECEIVED/S", "SENT/S", "READ/S", "WRITTEN/S"}}
	for _, l := range lines {
		t.add(l.Name, ofLimit(percent(l.CPU.Percent), l.CPU.LimitPercent, percent),
			ofLimit(sizeText(l.Memory.Usage), l.Memory.Total, sizeText), ofLimit(strconv.Itoa(l.Processes), l.ProcessesTotal, strconv.Itoa),
			sizeText(l.Network.Received), sizeText(l.Network.Sent), sizeText(l.Disk.Read), sizeText(l.Disk.Written))
	}
	return t
}

func percent(p float64) string { return strconv.FormatFloat(p, 'f', 1, 64) }

// top measures again and again.
type top struct {
	session  *session
	manager  Manager
	format   format
	order    func(a, b topLine) int
	interval time.Duration

	last []manager.Sample
}

// next waits for an interval and tells what was used in it.
func (t *top) next(ctx context.Context) ([]topLine, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(t.interval):
	}
	now, err := t.manager.Samples(ctx)
	if err != nil {
		return nil, err
	}
	lines := topLines(t.last, now, t.order)
	t.last = now
	return lines, nil
}

func (t *top) print(lines []topLine) error {
	return t.session.print(t.format, topTable(lines, t.format.kind == "csv"), lines)
}

func (t *top) once(ctx context.Context) (err error) {
	if t.last, err = t.manager.Samples(ctx); err != nil {
		return err
	}
	lines, err := t.next(ctx)
	if err != nil {
		return err
	}
	return t.print(lines)
}

// run shows tables until ctx ends: on a terminal each in the place of the one before,
// and at once one without what is only known after an interval.
func (t *top) run(ctx context.Context) (err error) {
	if t.last, err = t.manager.Samples(ctx); err != nil {
		return err
	}
	show := t.print
	out := t.session.Stdout
	if kind := t.format.kind; term.IsTerminal(int(out.Fd())) && (kind == "table" || kind == "compact") {
		sc := openScreen(ctx, out)
		defer sc.close()
		show = func(lines []topLine) error {
			size := sizeOf(out)
			head := fmt.Sprintf("Running: %d, every %s; Ctrl-C ends it", len(lines), t.interval)
			return sc.draw(fitted(head, topTable(lines, false).compact(t.format.header), int(size.Width), int(size.Height)))
		}
		if err := show(topLines(nil, t.last, t.order)); err != nil {
			return err
		}
	}
	for {
		lines, err := t.next(ctx)
		if err == nil {
			err = show(lines)
		}
		if err != nil {
			return err
		}
	}
}
