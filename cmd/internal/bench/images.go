package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// layerCount is how many layers the image has that is pulled.
const layerCount = 10

// images measures what becomes of an image of 250 MB in ten layers that a registry on
// the loopback interface serves, beside the tools that others use for it.
func (b *bench) images(ctx context.Context) (rows []row, err error) {
	reg, shared, err := b.serveImages(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reg.close(), os.RemoveAll(b.path("images"))) }()
	for _, measure := range []func(context.Context, *registry) ([]row, error){b.pulled, b.bootable} {
		got, err := measure(ctx, reg)
		if rows = append(rows, got...); err != nil {
			return rows, err
		}
	}
	got, err := b.sharing(ctx, reg, shared)
	return append(rows, got...), err
}

// serveImages makes and serves an image of ten layers and another with one more, of
// which it gives the size in bytes.
func (b *bench) serveImages(ctx context.Context) (_ *registry, more int64, err error) {
	dir := b.path("images")
	l, err := newLayers(dir)
	if err != nil {
		return nil, 0, err
	}
	plain, part := filepath.Join(dir, "whole.tar"), filepath.Join(dir, "part.tar")
	if err := b.writeTar(ctx, plain); err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(plain), os.Remove(part)) }()
	in, err := os.Open(plain)
	if err != nil {
		return nil, 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, 0, err
	}
	for r, more := tar.NewReader(in), true; more; {
		if more, err = writePart(part, r, info.Size()/layerCount); err == nil {
			err = l.add(ctx, part)
		}
		if err != nil {
			return nil, 0, err
		}
	}
	last := len(l.layers) - 1
	err = l.write(tagged{"ten", l.layers[:last], l.diffIDs[:last]}, tagged{"more", l.layers, l.diffIDs})
	if err != nil {
		return nil, 0, err
	}
	reg, err := serve(dir)
	return reg, l.layers[last].Size, err
}

// writePart writes entries of r to a tar until it has so many bytes, and tells whether
// there are more. It leaves out hard links to files of other parts, which builders of
// images do not make and podman does not take.
func writePart(to string, r *tar.Reader, bytes int64) (more bool, err error) {
	out, err := os.Create(to)
	if err != nil {
		return false, err
	}
	defer out.Close()
	w, names := tar.NewWriter(out), map[string]bool{}
	for bytes > 0 {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return false, errors.Join(w.Close(), out.Close())
		}
		if err == nil && h.Typeflag == tar.TypeLink && !names[h.Linkname] {
			continue
		}
		if err == nil {
			names[h.Name] = true
			err = w.WriteHeader(h)
		}
		if err == nil {
			_, err = io.Copy(w, r)
		}
		if err != nil {
			return false, err
		}
		bytes -= h.Size + 512
	}
	return true, errors.Join(w.Close(), out.Close())
}

// peers gives those sides whose tools are installed, and their names; of the others it
// says so.
func (b *bench) peers(all map[string]side, order ...string) (sides []side, names []string) {
next:
	for _, name := range order {
		for t := range strings.SplitSeq(name, " + ") {
			tool, _, _ := strings.Cut(t, " ")
			if _, err := exec.LookPath(tool); err != nil {
				b.say("  %s is not installed: brig is not compared with %s", tool, name)
				continue next
			}
		}
		sides, names = append(sides, all[name]), append(names, name)
	}
	return sides, names
}

// pulled measures a pull from the registry to files.
func (b *bench) pulled(ctx context.Context, reg *registry) (_ []row, err error) {
	written, err := b.newFresh(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, written.close()) }()
	var memory []float64
	brig := written.brig(&memory, "image", "pull", "docker://"+reg.ref("ten"))
	const skopeo, podman = "skopeo + umoci", "podman"
	sides, names := b.peers(map[string]side{
		skopeo: written.side(func(ctx context.Context, dir string) error { return umoci(ctx, reg, dir) }),
		podman: written.side(func(ctx context.Context, dir string) (err error) {
			run, err := os.MkdirTemp("", "bench-") // podman wants a path of at most 50 bytes
			if err != nil {
				return err
			}
			at := []string{"--root", filepath.Join(dir, "root"), "--runroot", run, "--storage-driver", "overlay"}
			// Its root is a mount, which would keep the folder.
			defer func() { err = errors.Join(err, unmountAll(dir), unmountAll(run), os.RemoveAll(run)) }()
			return tool(ctx, "podman", append(at, "pull", "-q", "--tls-verify=false", reg.ref("ten"))...)
		}),
	}, skopeo, podman)
	m, err := b.byTurns(ctx, 1, b.slow(), append([]side{brig}, sides...)...)
	if err != nil {
		return nil, err
	}
	rows := []row{{what: "peak memory of that pull", unit: "MiB", brig: median(memory), limit: limit{most, 100}}}
	what := fmt.Sprintf("pull and unpack 250 MB in %d layers from loopback", layerCount)
	for i, name := range names {
		rows = append(rows, row{what, "ms", m[0], m[i+1], name, limit{times, map[string]float64{skopeo: 0.5, podman: 0.7}[name]}})
	}
	if len(names) == 0 {
		rows = append(rows, row{what: what, unit: "ms", brig: m[0]})
	}
	return rows, nil
}

// peak is the most memory that a command had which has ended, in MiB.
func peak(cmd *exec.Cmd) float64 {
	return float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1024
}

func umoci(ctx context.Context, reg *registry, dir string) error {
	layout := filepath.Join(dir, "layout")
	if err := tool(ctx, "skopeo", "copy", "-q", "--src-tls-verify=false", "docker://"+reg.ref("ten"), "oci:"+layout+":ten"); err != nil {
		return err
	}
	return tool(ctx, "umoci", "unpack", "--image", layout+":ten", filepath.Join(dir, "bundle"))
}

// unmountAll takes away what is mounted below a folder.
func unmountAll(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			err = errors.Join(err, syscall.Unmount(f[1], syscall.MNT_DETACH))
		}
	}
	return err
}

// bootable measures the way from a layout on this host to a disk.
func (b *bench) bootable(ctx context.Context, reg *registry) (_ []row, err error) {
	written, err := b.newFresh(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, written.close()) }()
	var memory []float64
	brig := written.brig(&memory, "image", "pull", "oci:"+reg.dir+":ten", "--vm")
	const chain = "umoci unpack + mkfs.ext4 -d + qemu-img convert"
	sides, names := b.peers(map[string]side{chain: written.side(func(ctx context.Context, dir string) error {
		raw := filepath.Join(dir, "disk.raw")
		for _, args := range [][]string{
			{"umoci", "unpack", "--image", reg.dir + ":ten", filepath.Join(dir, "bundle")},
			{"mkfs.ext4", "-q", "-F", "-d", filepath.Join(dir, "bundle", "rootfs"), raw, "10G"},
			{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, filepath.Join(dir, "disk.qcow2")},
		} {
			if err := tool(ctx, args[0], args[1:]...); err != nil {
				return err
			}
		}
		return nil
	})}, chain)
	m, err := b.byTurns(ctx, 1, b.slow(), append([]side{brig}, sides...)...)
	if err != nil {
		return nil, err
	}
	r := row{what: "the same image in a layout, to files and a bootable disk", unit: "ms", brig: m[0]}
	if len(names) > 0 {
		r.floor, r.floorName, r.limit = m[1], chain, limit{times, 0.5}
	}
	return []row{r, {what: "peak memory of that", unit: "MiB", brig: median(memory), limit: limit{most, 100}}}, nil
}

// sharing counts what is fetched of an image that shares ten layers with another.
func (b *bench) sharing(ctx context.Context, reg *registry, layer int64) ([]row, error) {
	if err := b.do(ctx, "image", "pull", "docker://"+reg.ref("ten"), "--alias", "ten"); err != nil {
		return nil, err
	}
	before := reg.sent.Load()
	if err := b.do(ctx, "image", "pull", "docker://"+reg.ref("more"), "--alias", "more"); err != nil {
		return nil, err
	}
	const mib = 1 << 20
	sent := float64(reg.sent.Load()-before) / mib
	return []row{{"fetched of an image with one more layer", "MiB", sent, float64(layer) / mib, "the layer", limit{kind: more, value: 0.01}}},
		b.do(ctx, "image", "delete", "ten", "more")
}
