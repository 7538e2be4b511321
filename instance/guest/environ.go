package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// DefaultPath is where commands are looked for when nobody says.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environment is what a process's environment is made from. Later sources win:
// the defaults that follow from Hostname, User and Terminal, then Base, then
// Extra.
type Environment struct {
	Hostname string
	User     User
	Terminal bool
	Login    bool     // a command of a person: USER is set as well
	Base     []string // of the machine: an app image's and its owner's
	Extra    []string // of this one command
}

// List gives the environment, each name once. What is not NAME=value is left
// out.
func (e Environment) List() []string {
	vars := []string{"PATH=" + DefaultPath}
	if e.Hostname != "" {
		vars = append(vars, "HOSTNAME="+e.Hostname)
	}
	if e.Terminal {
		vars = append(vars, "TERM=xterm")
	}
	if e.User.Home != "" {
		vars = append(vars, "HOME="+e.User.Home)
	}
	if e.Login && e.User.Name != "" {
		vars = append(vars, "USER="+e.User.Name)
	}
	vars = append(vars, e.Base...)
	return unique(append(vars, e.Extra...))
}

// unique keeps the last value of each name at the place of its first.
func unique(vars []string) []string {
	at := map[string]int{}
	var out []string
	for _, v := range vars {
		name, _, ok := strings.Cut(v, "=")
		if !ok || name == "" || strings.ContainsRune(v, 0) {
			continue
		}
		if i, seen := at[name]; seen {
			out[i] = v
			continue
		}
		at[name] = len(out)
		out = append(out, v)
	}
	return out
}

// lookup gives a variable of a list.
func lookup(vars []string, name string) (string, bool) {
	for _, v := range vars {
		if n, value, ok := strings.Cut(v, "="); ok && n == name {
			return value, true
		}
	}
	return "", false
}

// Why a command cannot be run, with the exit code that a shell gives for it.
var (
	ErrNotFound      = errors.New("command not found")    // 127
	ErrNotExecutable = errors.New("permission denied")    // 126
	errNothing       = errors.New("no command was given") // 127
	errDirectory     = fmt.Errorf("%w: is a directory", ErrNotExecutable)
)

// ExitOf is the exit code that a shell gives for a command that could not be
// run.
func ExitOf(err error) int {
	if errors.Is(err, ErrNotExecutable) {
		return 126
	}
	return 127
}

// LookPath finds the file that a command names, as a shell in directory dir
// would with the PATH of env: a name with a slash is a path, any other is
// looked for. stat follows links, as the guest sees them.
func LookPath(name, dir string, env []string, stat func(string) (fs.FileInfo, error)) (string, error) {
	if name == "" {
		return "", errNothing
	}
	if strings.Contains(name, "/") {
		file := in(dir, name)
		return file, executable(file, stat)
	}
	list, ok := lookup(env, "PATH")
	if !ok {
		list = DefaultPath
	}
	var denied error
	for _, d := range strings.Split(list, ":") {
		file := in(dir, path.Join(d, name))
		switch err := executable(file, stat); {
		case err == nil:
			return file, nil
		case errors.Is(err, ErrNotExecutable) && denied == nil:
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", ErrNotFound
}

// in is file as seen from dir. It is not cleaned: a link before ".." counts.
func in(dir, file string) string {
	if path.IsAbs(file) {
		return file
	}
	return dir + "/" + file
}

func executable(file string, stat func(string) (fs.FileInfo, error)) error {
	info, err := stat(file)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return ErrNotExecutable
	case err != nil:
		return ErrNotFound
	case info.IsDir():
		return errDirectory
	case info.Mode().Perm()&0o111 == 0 || !info.Mode().IsRegular():
		return ErrNotExecutable
	}
	return nil
}
