package fence

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// tools open disks, and look for the format of one by themselves unless it is given.
var tools = []string{"qemu-img", "qemu-nbd", "qemu-io"}

// named are functions that give the format in another way: a file name that begins with
// json: and has the driver in it.
var named = []string{"images/diskfile.convert", "images/diskfile.peek"}

// TestDiskFormatsAreGiven looks at every function that starts one of these tools: it
// has to say -f, or --format=.
func TestDiskFormatsAreGiven(t *testing.T) {
	top := filepath.Join("..", "..", "..")
	calls := 0
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != top && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil || !slices.ContainsFunc(tools, func(tool string) bool { return strings.Contains(string(source), tool) }) {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, source, 0)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(top, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			started, given := opensDisks(f.Body)
			calls += started
			if name := dir + "." + f.Name.Name; started > given && !slices.Contains(named, name) {
				t.Errorf("%s starts a tool of QEMU %d times and gives it a format %d times: one that it has to look for, a guest may have chosen", name, started, given)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls < 10 {
		t.Errorf("found %d places where a tool is started: are they still called that?", calls)
	}
}

// opensDisks counts how often a function passes the name of a tool to another, and how
// often it gives a format.
func opensDisks(body ast.Node) (started, given int) {
	ast.Inspect(body, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && slices.ContainsFunc(call.Args, func(a ast.Expr) bool { return slices.Contains(tools, literal(a)) }) {
			started++
		}
		if e, ok := n.(ast.Expr); ok && (literal(e) == "-f" || strings.HasPrefix(literal(e), "--format=")) {
			given++
		}
		return true
	})
	return started, given
}

// literal gives a string that is written out, or nothing.
func literal(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	text, _ := strconv.Unquote(lit.Value)
	return text
}
