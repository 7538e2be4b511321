package cli

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
)

// ofTheHost are what a manager does that is about no instance of one project.
var ofTheHost = []string{
	"AdoptPool", "Again", "AliasImage", "Boot", "CareForImages", "ChangeProject", "ConfigureVolume", "CopyVolume", "CreatePool",
	"CreateProject", "CreateVolume", "CreateVolumeSnapshot", "DeleteImage", "DeleteImageAlias", "DeletePool", "DeleteProject",
	"DeleteVolume", "DeleteVolumeSnapshot", "DiffImages", "Doctor", "ExportFiles", "ExportImage", "ForgetPool", "ForgetVolumeUndo",
	"HasProject", "Image", "ImageHistory", "Images", "ImportImage", "ImportKernel", "ImportVolume", "Kernels", "Listen", "MoveVolume",
	"Pool", "Pools", "ProfileIn", "Project", "Projects", "PruneImages", "PullImage", "RecoverPool", "RefreshImage", "RenameImageAlias",
	"RenameProject", "RenameVolume", "RenameVolumeSnapshot", "RestoreVolumeSnapshot", "Samples", "SearchImages", "SetImage", "SetPool",
	"Shutdown", "SpaceIn", "Sweep", "Tick", "UndoVolume", "UnmountSnapshot", "VerifyImage", "Volume", "Volumes",
}

// TestEveryNameIsOfAProject keeps a new method of a manager from being asked with names
// that are those of another project.
func TestEveryNameIsOfAProject(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var asked, known []string
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, source, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				if i, ok := n.Type.(*ast.InterfaceType); ok && n.Name.Name == "Manager" {
					for _, m := range i.Methods.List {
						asked = append(asked, m.Names[0].Name)
					}
				}
			case *ast.FuncDecl:
				if n.Recv != nil {
					if of, ok := n.Recv.List[0].Type.(*ast.Ident); ok && of.Name == "inProject" {
						known = append(known, n.Name.Name)
					}
				}
			}
			return true
		})
	}
	if len(asked) < 100 {
		t.Fatalf("found only %d methods of a manager", len(asked))
	}
	for _, name := range asked {
		if slices.Contains(known, name) == slices.Contains(ofTheHost, name) {
			t.Errorf("%s is either asked about names of one project, and has to be a method of inProject, or is to be in ofTheHost", name)
		}
	}
}

// TestCommandsWorkInAProject looks at what reaches the manager of names.
func TestCommandsWorkInAProject(t *testing.T) {
	for _, c := range []struct {
		env, args []string
		want      string
	}{
		{nil, []string{"start", "web"}, "start web"},
		{nil, []string{"--project", "p", "start", "web"}, "start p_web"},
		{[]string{"BRIG_PROJECT=p"}, []string{"start", "web"}, "start p_web"},
		{[]string{"BRIG_PROJECT=p"}, []string{"start", "web", "--project", "default"}, "start web"},
		{[]string{"BRIG_PROJECT=p"}, []string{"start", "default_web"}, "start web"},
		{nil, []string{"start", "p_web"}, "start p_web"},
		{[]string{"BRIG_PROJECT=p"}, []string{"copy", "web", "b"}, "Source:p_web Snapshot: Name:p_b"},
		{nil, []string{"copy", "web", "--target-project", "p"}, "Source:web Snapshot: Name:p_web"},
		{[]string{"BRIG_PROJECT=p"}, []string{"copy", "web", "--target-project", "default"}, "Source:p_web Snapshot: Name:web"},
		{[]string{"BRIG_PROJECT=p"}, []string{"stop", "--all"}, "stop p_web"},
	} {
		f := &asking{fake: fake{views: []manager.View{
			{Spec: &instance.Spec{Name: "web"}, State: instance.State{Status: instance.Running}},
			{Spec: &instance.Spec{Name: "p_web"}, State: instance.State{Status: instance.Running}},
		}}}
		env := map[string]string{}
		for _, e := range c.env {
			key, value, _ := strings.Cut(e, "=")
			env[key] = value
		}
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		app := App{Stdin: null, Stdout: null, Stderr: null, Getenv: func(key string) string { return env[key] }, Compose: func(Options) (Manager, error) { return f, nil }}
		if code := Run(context.Background(), app, c.args); code != 0 {
			t.Errorf("%v %v = %d", c.env, c.args, code)
		}
		if calls := strings.Join(f.calls, "\n"); !strings.Contains(calls, c.want) || strings.Count(calls, "\n") > 0 {
			t.Errorf("%v %v asked for %q, want %q", c.env, c.args, calls, c.want)
		}
	}
}

// asking is a manager with the project p.
type asking struct{ fake }

func (a *asking) HasProject(name string) error {
	if name == "p" {
		return nil
	}
	return fault.New(fault.NotFound, "there is no project %q", name)
}

func TestTheChosenProject(t *testing.T) {
	env := map[string]string{"XDG_CONFIG_HOME": t.TempDir(), "BRIG_DIR": "/nowhere/brig"}
	s := &session{App: App{Getenv: func(key string) string { return env[key] }}}
	is := func(want string) {
		t.Helper()
		if got, err := s.projectName(); err != nil || got != want {
			t.Errorf("the project is %q, %v, want %q", got, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is(project.Default)
	must(s.choose("p"))
	is("p")
	env["BRIG_PROJECT"] = "q"
	is("q")
	delete(env, "BRIG_PROJECT")
	// Another brig has a choice of its own.
	env["BRIG_DIR"] = "/nowhere/else"
	is(project.Default)
	env["BRIG_DIR"] = "/nowhere/brig"
	must(s.followProject("p", "renamed"))
	is("renamed")
	must(s.followProject("other", "x"))
	is("renamed")
	must(s.choose(project.Default))
	is(project.Default)
	if left, _ := os.ReadDir(filepath.Join(env["XDG_CONFIG_HOME"], "brig")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	must(os.WriteFile(filepath.Join(env["XDG_CONFIG_HOME"], "brig", "projects.json"), []byte(`{"/nowhere/brig/state":"../x"}`), 0o600))
	if got, err := s.projectName(); !fault.Is(err, fault.Invalid) {
		t.Errorf("a hostile choice gives %q, %v", got, err)
	}
}
