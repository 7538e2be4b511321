package transfer_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/backup"
	"brig/storage/transfer"
)

func exported(t *testing.T, v storage.Volume, r transfer.Request) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := backup.NewWriter(&buf, "zstd")
	r.Source, r.Dir = v, t.TempDir()
	if err == nil {
		err = transfer.Export(t.Context(), r, func(name string) bool { return name == "instance.json" }, w)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func imported(t *testing.T, p storage.Pool, c storage.Content, file []byte) error {
	t.Helper()
	r, err := backup.NewReader(bytes.NewReader(file))
	if err != nil {
		return err
	}
	return transfer.Import(t.Context(), transfer.ImportRequest{
		Pool: p, Key: far, Content: c, Dir: t.TempDir(),
		CheckName: func(name string) error { return storage.CheckName("snapshot", name) },
		Edit: func(dir *os.Root, snapshot string) error {
			if snapshot == "" {
				return dir.WriteFile("instance.json", []byte("the one"), 0o600)
			}
			return nil
		},
	}, r)
}

// states compares all states of two volumes.
func sameStates(t *testing.T, v, made storage.Volume, equal func(a, b storage.Root) error) {
	t.Helper()
	ctx := t.Context()
	want, err := v.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got, err := made.Snapshots(ctx)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("snapshots %+v, %v, want %+v", got, err, want)
	}
	for _, s := range want {
		a, err := v.SnapshotRoot(ctx, s.Name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := made.SnapshotRoot(ctx, s.Name)
		if err == nil {
			err = equal(a, b)
		}
		if err != nil {
			t.Errorf("snapshot %q: %v", s.Name, err)
		}
	}
	if err := equal(v.Root(), made.Root()); err != nil {
		t.Error(err)
	}
}

func sameFiles(t *testing.T) func(a, b storage.Root) error {
	return func(a, b storage.Root) error {
		if digest(t, a) != digest(t, b) {
			return fmt.Errorf("the files differ")
		}
		return nil
	}
}

func TestExportedFilesComeBack(t *testing.T) {
	ctx := t.Context()
	from, to := newPool(t), newPool(t)
	v := source(t, from)
	file := exported(t, v, transfer.Request{})
	if len(file) > 5<<20 {
		t.Errorf("the file has %d bytes, want little more than the 4 MiB that do not compress", len(file))
	}
	if err := imported(t, to, storage.Tree, file); err != nil {
		t.Fatal(err)
	}
	made, err := to.Open(ctx, far)
	if err != nil {
		t.Fatal(err)
	}
	sameStates(t, v, made, sameFiles(t))
	dir, err := made.Dir()
	if text := meta(t, dir, err); text != "the one" {
		t.Errorf("the configuration is %q", text)
	}
	dir, err = made.SnapshotDir(ctx, "two")
	if text := meta(t, dir, err); text != "second" {
		t.Errorf("that of snapshot two is %q", text)
	}
	// One state alone, into a pool that has another by that name.
	if err := imported(t, to, storage.Tree, exported(t, v, transfer.Request{Snapshot: "one"})); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Import over another = %v, want already-exists", err)
	}
}

func TestDamagedFilesLeaveNothing(t *testing.T) {
	from, to := newPool(t), newPool(t)
	file := exported(t, source(t, from), transfer.Request{})
	nothing := func(what string, err error) {
		t.Helper()
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", what, err)
		}
		if list, err := to.List(t.Context(), storage.Instances); err != nil || len(list) != 0 {
			t.Fatalf("%s: left in the pool: %v, %v", what, list, err)
		}
	}
	for _, n := range []int{30, len(file) / 2, len(file) * 9 / 10, len(file) - 1} {
		nothing(fmt.Sprint("cut after ", n), imported(t, to, storage.Tree, file[:n]))
		altered := bytes.Clone(file)
		altered[n] ^= 1
		nothing(fmt.Sprint("altered at ", n), imported(t, to, storage.Tree, altered))
	}
	nothing("files taken for a disk", imported(t, to, storage.Disk, file))
}

// TestImpossibleFilesLeaveNothing tells what no export does, in files that are whole.
func TestImpossibleFilesLeaveNothing(t *testing.T) {
	to := newPool(t)
	up := `{"op":"up","attr":{"mode":16877}}`
	sum := strings.Repeat("0", 64)
	for name, lines := range map[string][]string{
		"nothing":               nil,
		"no data":               {`{"files":0}`},
		"another sum":           {`{"files":0}`, up, `{"sum":"` + sum + `"}`},
		"a name of a snapshot":  {`{"snapshot":{"name":"../x","created_at":"2024-01-01T00:00:00Z"},"files":0}`},
		"a path beside":         {`{"files":1}`, `{"name":"../../x","size":0}`},
		"a folder beside":       {`{"files":1}`, `{"name":"rootfs","size":0}`},
		"twice the same":        {`{"files":2}`, `{"name":"a","size":0}`, `{"name":"a","size":0}`},
		"its own configuration": {`{"files":1}`, `{"name":"instance.json","size":0}`, up},
		"too many":              {`{"files":1000000}`},
		"huge":                  {`{"files":1}`, `{"name":"a","size":1099511627776}`},
		"a disk":                {`{"files":0,"disk":512}`},
		"what nobody knows":     {`{"files":0,"magic":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			w, err := backup.NewWriter(&buf, "none")
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range lines {
				if err := w.Record(raw(line)); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			// The last word on the configuration is the caller's, as the manager has it.
			r, err := backup.NewReader(&buf)
			if err != nil {
				t.Fatal(err)
			}
			err = transfer.Import(context.Background(), transfer.ImportRequest{
				Pool: to, Key: far, Content: storage.Tree, Dir: t.TempDir(),
				CheckName: func(name string) error { return storage.CheckName("snapshot", name) },
				Edit: func(dir *os.Root, _ string) error {
					if _, err := dir.Lstat("instance.json"); err == nil {
						return fault.New(fault.Invalid, "two configurations")
					}
					return nil
				},
			}, r)
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("Import = %v, want invalid", err)
			}
			if list, err := to.List(t.Context(), storage.Instances); err != nil || len(list) != 0 {
				t.Errorf("left in the pool: %v, %v", list, err)
			}
		})
	}
}

// raw is JSON as it is.
type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

func TestExportedDisksComeBack(t *testing.T) {
	ctx := t.Context()
	from, to := newPool(t), newPool(t)
	v, err := from.Create(ctx, web, storage.Disk, func(dir *os.Root) error {
		return sh(t, dir.Name(), `echo x >instance.json; dd if=/dev/urandom of=disk.raw bs=64k count=8 status=none; truncate -s 64M disk.raw`)
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"one", "two"} {
		if err := v.Snapshot(ctx, name, storage.SnapshotOptions{CreatedAt: year.Add(time.Duration(i) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		root := v.Root()
		for _, command := range []string{fmt.Sprintf("write -P %d %dM 128k", i+1, i*8), "write -z 64k 64k"} {
			if _, err := run.Output(ctx, "qemu-io", "-f", root.DiskFormat, "-c", command, root.DiskPath); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := exported(t, v, transfer.Request{})
	if len(file) > 1<<20 {
		t.Errorf("the file has %d bytes, want what is written on the disk", len(file))
	}
	if err := imported(t, to, storage.Disk, file); err != nil {
		t.Fatal(err)
	}
	made, err := to.Open(ctx, far)
	if err != nil {
		t.Fatal(err)
	}
	sameStates(t, v, made, func(a, b storage.Root) error {
		_, err := run.Output(ctx, "qemu-img", "compare", "-f", a.DiskFormat, "-F", b.DiskFormat, a.DiskPath, b.DiskPath)
		return err
	})
	if err := imported(t, to, storage.Tree, file); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("a disk taken for files = %v, want a refusal", err)
	}
}
