// Command probe is the one program of the image that the parity table runs: it
// tells what a process sees of its instance, in both forms alike.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Report is what a process sees.
type Report struct {
	Args     []string
	Env      []string
	UID, GID int
	Groups   []int
	Dir      string
	Hostname string
	Addrs    []string
	Resolv   string
	Parent   string // comm of the parent process
}

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"report"}
	}
	switch args[0] {
	case "report": // report [ANY...]: write /report.json, then wait for a signal
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGINT)
		must(os.WriteFile("/data/report.json.new", encode(report()), 0o644))
		must(os.Rename("/data/report.json.new", "/data/report.json"))
		// A place that is gone with this process, unlike a file.
		up, err := net.Listen("unix", upSocket)
		must(err)
		defer up.Close()
		fmt.Println("probe is up")
		s := <-caught
		must(os.WriteFile("/data/signal", []byte(s.String()), 0o644))
		os.Exit(40 + int(s.(syscall.Signal)))
	case "up": // fail unless the main process reports and catches signals by now
		conn, err := net.Dial("unix", upSocket)
		must(err)
		conn.Close()
	case "see": // print what this process sees
		os.Stdout.Write(encode(report()))
	case "exit":
		code, err := strconv.Atoi(args[1])
		must(err)
		os.Exit(code)
	case "kill": // die by a signal
		n, err := strconv.Atoi(args[1])
		must(err)
		syscall.Kill(os.Getpid(), syscall.Signal(n))
		select {}
	case "streams": // copy standard input to both outputs, marked
		in, err := io.ReadAll(os.Stdin)
		must(err)
		fmt.Fprintf(os.Stdout, "out:%s", in)
		fmt.Fprintf(os.Stderr, "err:%s", in)
		os.Exit(3)
	case "write": // write NAME TEXT
		must(os.WriteFile(args[1], []byte(args[2]), 0o644))
		unix.Sync()
	case "read":
		data, err := os.ReadFile(args[1])
		must(err)
		os.Stdout.Write(data)
	case "mkdir":
		must(os.MkdirAll(args[1], 0o755))
	case "link": // make a link to TARGET called NAME
		must(os.Symlink(args[1], args[2]))
		unix.Sync()
	case "chown": // give NAME to UID GID
		uid, err := strconv.Atoi(args[2])
		must(err)
		gid, err := strconv.Atoi(args[3])
		must(err)
		must(os.Lchown(args[1], uid, gid))
	case "owner":
		st, err := os.Lstat(args[1])
		must(err)
		fmt.Printf("%d:%d\n", st.Sys().(*syscall.Stat_t).Uid, st.Sys().(*syscall.Stat_t).Gid)
	case "node": // open the device file NAME and tell what it is
		f, err := os.OpenFile(args[1], os.O_RDONLY, 0)
		must(err)
		var st unix.Stat_t
		must(unix.Fstat(int(f.Fd()), &st))
		fmt.Printf("%o %d:%d %d:%d\n", st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev), st.Uid, st.Gid)
		f.Close()
	case "swap": // be a directory and a link to TARGET by turns at NAME, until there is NAME.stop
		swap(args[1], args[2])
	case "writable": // try to make the mount at NAME writable
		must(unix.Mount("", args[1], "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	case "disk": // find the disk with a serial number
		files, err := filepath.Glob("/sys/block/*/serial")
		must(err)
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.TrimRight(string(b), " \n\x00") == args[1] {
				fmt.Println("/dev/" + filepath.Base(filepath.Dir(f)))
				return
			}
		}
		os.Exit(1)
	case "hold": // keep NAME open until a signal comes
		f, err := os.Open(args[1])
		must(err)
		defer f.Close()
		must(os.WriteFile("/data/holding", nil, 0o644))
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, syscall.SIGTERM)
		<-caught
	case "claim": // keep the disk NAME open for this process alone until a signal comes
		f, err := os.OpenFile(args[1], os.O_RDWR|os.O_EXCL, 0)
		must(err)
		fmt.Println("claimed")
		untilSignal()
		f.Close()
	case "zeros": // write NAME BYTES
		n, err := strconv.ParseInt(args[2], 10, 64)
		must(err)
		f, err := os.Create(args[1])
		must(err)
		w := bufio.NewWriter(f)
		io.CopyN(w, zero{}, n)
		must(w.Flush())
		must(f.Close())
	case "memory": // memory BYTES [hold]: use so much of it, and say so; hold it until a signal
		n, err := strconv.Atoi(args[1])
		must(err)
		// By pieces: a kernel refuses at once what is more than all it has.
		var used [][]byte
		for left := n; left > 0; left -= 1 << 20 {
			piece := make([]byte, min(left, 1<<20))
			for i := 0; i < len(piece); i += 4096 {
				piece[i] = 1
			}
			used = append(used, piece)
		}
		fmt.Printf("used %d", n)
		if len(args) > 2 {
			untilSignal()
		}
		runtime.KeepAlive(used)
	case "busy": // busy N: keep N processors busy until a signal
		busy(args[1])
	case "fork": // fork MOST: make so many processes, or as many as there may be
		fork(args[1])
	case "terminal": // tell about the terminal, wait for a line, tell the size again
		terminal()
	case "reboot":
		unix.Sync()
		must(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
		select {}
	case "boots": // count the starts of this instance in /data/boots, then wait
		data, _ := os.ReadFile("/data/boots")
		must(os.WriteFile("/data/boots", append(data, 'x'), 0o644))
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, syscall.SIGTERM)
		up, err := net.Listen("unix", upSocket)
		must(err)
		defer up.Close()
		fmt.Println("probe is up")
		<-caught
	case "fails": // fails TIMES: count the starts in /data/boots, fail so often, then wait
		data, _ := os.ReadFile("/data/boots")
		data = append(data, 'x')
		must(os.WriteFile("/data/boots", data, 0o644))
		unix.Sync()
		if n, err := strconv.Atoi(args[1]); err != nil || len(data) <= n {
			os.Exit(3)
		}
		// A program that waits for nothing at all would be ended as dead-locked.
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, syscall.SIGTERM)
		<-caught
	default:
		fmt.Fprintf(os.Stderr, "unknown word %q\n", args[0])
		os.Exit(2)
	}
}

// swap changes what is at a name as fast as it can.
func swap(name, target string) {
	must(os.MkdirAll(name, 0o755))
	for {
		if _, err := os.Lstat(name + ".stop"); err == nil {
			return
		}
		must(os.Rename(name, name+".dir"))
		for os.Symlink(target, name) != nil { // somebody has made the directory anew
			os.RemoveAll(name)
		}
		must(os.Remove(name))
		for os.Rename(name+".dir", name) != nil { // somebody has made the directory anew
			os.RemoveAll(name)
		}
	}
}

// upSocket is an abstract socket of the instance's network namespace.
const upSocket = "@probe"

func report() Report {
	r := Report{Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid()}
	r.Groups, _ = os.Getgroups()
	r.Dir, _ = os.Getwd()
	r.Hostname, _ = os.Hostname()
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
				r.Addrs = append(r.Addrs, a.String())
			}
		}
	}
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	r.Resolv = string(resolv)
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getppid()))
	r.Parent = strings.TrimSpace(string(comm))
	return r
}

func terminal() {
	size := func() string {
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return "no terminal"
		}
		return fmt.Sprintf("%dx%d", ws.Col, ws.Row)
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	name, _ := os.Readlink("/proc/self/fd/0")
	fmt.Printf("size %s on %s\n", size(), name)
	bufio.NewReader(os.Stdin).ReadString('\n')
	fmt.Printf("size %s then\n", size())
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i * 7)
	}
	return len(p), nil
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	must(err)
	return append(data, '\n')
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}

// busy keeps as many threads busy, and says how many processors it may use.
func busy(threads string) {
	n, err := strconv.Atoi(threads)
	must(err)
	runtime.GOMAXPROCS(n + 1)
	for range n {
		go func() {
			for {
			}
		}()
	}
	fmt.Printf("busy on %d\n", runtime.NumCPU())
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGTERM)
	<-caught
}

// fork makes processes that end at once, which nobody waits for: they count until this
// one has ended, too. Nothing else would work with no thread to spare.
func fork(most string) {
	n, err := strconv.Atoi(most)
	must(err)
	made := 0
	var failed syscall.Errno
	for ; made < n; made++ {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			failed = errno
			break
		}
		if pid == 0 {
			for {
				syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
			}
		}
	}
	if failed != 0 {
		fmt.Printf("%d processes, then: %v", made, failed)
		return
	}
	fmt.Printf("%d processes", made)
}

// untilSignal returns when somebody wants this process to end.
func untilSignal() {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGTERM)
	<-caught
}
