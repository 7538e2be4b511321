// Package lab runs tests in a virtual machine that has what the machine at hand
// may lack: ZFS, LVM and the rest of the device mapper, systemd as init, cgroup v2
// with all its controllers, a KVM that runs guests. The guest is a Debian of the
// same release as the host, and everything in it is real.
//
// There are two kinds of machines for it. One has an emulated processor and Debian's
// kernel for clouds, and is slow. The other is a kernel that runs as a program of the
// host, user-mode Linux: it has no KVM and not all controllers, and starts programs
// many times quicker.
//
// Build makes the guest of Debian's packages: one tree in which the modules of
// ZFS are compiled for that kernel, one that becomes the guest's disk. Both are
// cached and made anew when what they are made of changes. A test calls Run with
// packages whose tests to run inside; the guest boots, runs the compiled tests as
// root, tells what they print while they print it, and is gone with all they did.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/term"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage/storagetest/lab/plan"
)

// Kind is a kind of machine.
type Kind string

const (
	Emulated Kind = ""     // has an emulated processor with KVM, ZFS, and all of cgroup v2
	User     Kind = "user" // is a kernel as a program of the host, with the device mapper; no network of brig's
)

// Kinds are all kinds of machines.
func Kinds() []Kind { return []Kind{Emulated, User} }

// Options say what runs in the guest and what it finds there.
type Options struct {
	Kind  Kind
	Tests []Binary

	// Trees are directories of the host by a name of at most 14 letters. A copy
	// of each is in the guest, writable, at Tree(name).
	Trees map[string]string

	// Files are files of the host by name. A copy of each is in the guest at
	// File(name), and so is each program, compiled without cgo.
	Files    map[string]string
	Programs map[string]string // import paths

	Disks  []int64 // bytes of the empty disks, which are in the guest at Disk(0) and on
	Memory int     // MiB; 0: 2048
	Env    []string
}

// Binary is the tests of one package.
type Binary struct {
	Package string   // its import path
	Run     string   // which tests, as for go test -run; empty: all
	Short   string   // the same where time is short; empty: those of Run
	Args    []string // more arguments, such as -test.short
}

// Result is how the tests of one package ended.
type Result struct {
	Code   int // exit code; -1: they did not end
	Output []byte
}

// Inside tells whether this program runs in the lab's guest.
func Inside() bool { return os.Getenv(plan.Inner) != "" }

// Tree is where a tree of Options is in the guest.
func Tree(name string) string { return filepath.Join(plan.Trees, name) }

// File is where a file of Options is in the guest.
func File(name string) string { return filepath.Join(plan.Share, "files", name) }

// Disk is the device of an empty disk of Options, in the guest.
func Disk(i int) string { return plan.Disk + strconv.Itoa(i) }

// Do builds the guest, boots it, runs all tests of o in their order and gives
// their results. What they print goes to out as it comes. An error means that not
// all of them ran; the results tell what did.
func Do(ctx context.Context, o Options, log, out io.Writer) ([]Result, error) {
	m, module, cleanup, err := ready(ctx, o, log)
	if err != nil {
		return nil, err
	}
	defer cleanup()
	p := plan.Plan{}
	if p.Commands, err = m.compile(ctx, module, o); err != nil {
		return nil, err
	}
	if err := m.prepare(ctx, module, p); err != nil {
		return nil, err
	}
	results := make([]Result, len(o.Tests))
	for i := range results {
		results[i].Code = -1
	}
	ended := 0
	err = m.run(ctx, func(e plan.Event) {
		if e.Command < 0 || e.Command >= len(results) {
			return
		}
		r := &results[e.Command]
		r.Output = append(r.Output, e.Output...)
		out.Write(e.Output)
		if e.Exit != nil {
			r.Code = *e.Exit
			ended++
		}
	})
	if err == nil && ended < len(results) {
		err = fault.New(fault.Internal, "the lab's guest went off after %d of %d programs%s", ended, len(results), m.said())
	}
	return results, err
}

// Shell boots the guest with a shell on this program's terminal; the guest goes
// off when the shell ends. The tests of o are compiled and lie in the guest's
// /lab, and are not run.
func Shell(ctx context.Context, o Options, log io.Writer) error {
	m, module, cleanup, err := ready(ctx, o, log)
	if err != nil {
		return err
	}
	defer cleanup()
	if _, err := m.compile(ctx, module, o); err != nil {
		return err
	}
	w := plan.Window{Rows: 24, Cols: 80, Term: "vt100"}
	if cols, rows, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		w = plan.Window{Rows: rows, Cols: cols, Term: os.Getenv("TERM")}
	}
	if err := m.prepare(ctx, module, plan.Plan{Shell: &w}); err != nil {
		return err
	}
	m.shell = true
	return m.run(ctx, func(plan.Event) {})
}

// ready builds the guest and makes room for one boot of it.
func ready(ctx context.Context, o Options, log io.Writer) (m *machine, module string, cleanup func(), err error) {
	for name := range o.Trees {
		if len(name) > 14 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz") != "" {
			return nil, "", nil, fault.New(fault.Invalid, "cannot call a tree %q: want at most 14 small letters", name)
		}
	}
	if module, err = moduleDir(ctx); err != nil {
		return nil, "", nil, err
	}
	img, err := Build(ctx, o.Kind, log)
	if err != nil {
		return nil, "", nil, err
	}
	dir, remove, err := bootDir(ctx, o.Kind.tmp())
	if err != nil {
		return nil, "", nil, err
	}
	m = &machine{kind: o.Kind, image: img, dir: dir, memory: o.Memory, disks: o.Disks, trees: slices.Sorted(maps.Keys(o.Trees)), from: o.Trees}
	return m, module, remove, nil
}

// compile puts the tests, the data of their packages and the files of o into what
// the guest shares.
func (m *machine) compile(ctx context.Context, module string, o Options) ([]plan.Command, error) {
	share := filepath.Join(m.dir, "share")
	if err := os.MkdirAll(filepath.Join(share, "files"), 0o755); err != nil {
		return nil, err
	}
	for name, path := range o.Files {
		if err := link(path, filepath.Join(share, "files", name)); err != nil {
			return nil, err
		}
	}
	for name, pkg := range o.Programs {
		if err := build(ctx, module, pkg, filepath.Join(share, "files", name)); err != nil {
			return nil, err
		}
	}
	var commands []plan.Command
	for i, b := range o.Tests {
		dir := filepath.Join("tests", strconv.Itoa(i))
		if err := m.compileOne(ctx, module, b, filepath.Join(share, dir)); err != nil {
			return nil, fmt.Errorf("cannot compile the tests of %q: %w", b.Package, err)
		}
		args := append([]string{"-test.v", "-test.paniconexit0"}, b.Args...)
		if b.Run != "" {
			args = append(args, "-test.run="+b.Run)
		}
		commands = append(commands, plan.Command{
			Path: filepath.Join(plan.Share, dir, testProgram), Args: args,
			Dir: filepath.Join(plan.Share, dir), Env: o.Env,
		})
	}
	return commands, nil
}

const testProgram = "package.test"

func (m *machine) compileOne(ctx context.Context, module string, b Binary, dst string) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	in := run.Options{Dir: module}
	out, err := run.With(ctx, in, goTool(), "list", "-f", "{{.Dir}}", b.Package)
	if err != nil {
		return err
	}
	var stderr strings.Builder
	in.Stderr = &stderr
	if _, err := run.With(ctx, in, goTool(), "test", "-c", "-ldflags=-s -w", "-o", filepath.Join(dst, testProgram), b.Package); err != nil {
		return fmt.Errorf("%w\n%s", err, stderr.String())
	}
	data := filepath.Join(strings.TrimSpace(string(out)), "testdata")
	if !exists(data) {
		return nil
	}
	return os.CopyFS(filepath.Join(dst, "testdata"), os.DirFS(data))
}

// link gives a file a second name, or copies it where that cannot be.
func link(path, dst string) error {
	if err := os.Link(path, dst); err == nil {
		return nil
	}
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	f, err := os.Create(dst)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, src)
	return errors.Join(err, f.Close())
}
