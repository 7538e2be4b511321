package images_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// hostile says which tests hold against which group of hostile images. A name stands
// for all tests that begin with it; tests in rootfs have the number of their group.
var hostile = []struct {
	group string
	tests string // folder from the top, and tests in it
}{
	{"1 names of entries", "images/rootfs: TestHostile1Names; images/verify: TestHostileLayersAreRefused"},
	{"2 writes through links", "images/rootfs: TestHostile2"},
	{"3 hard links", "images/rootfs: TestHostile3Hardlinks"},
	{"4 whiteouts", "images/rootfs: TestHostile4Whiteouts; images/verify: TestLayersAreAppliedAsTheSpecificationSays"},
	{"5 changes of type and parents", "images/rootfs: TestHostile5"},
	{"6 times, set-id bits, attributes", "images/rootfs: TestHostile6; images/verify: TestUnpackedTreeIsTheReplay"},
	{"7 devices", "images/rootfs: TestHostile7Devices"},
	{"8 owners", "images/rootfs: TestHostile8Owners"},
	{"9 dialects of tar", "images/rootfs: TestHostile9"},
	{"10 compression and bombs", "images/rootfs: TestHostile10 TestLimits; images/verify: TestLayerThatInflatesWithoutEndIsRefused"},
	{"11 manifests", "images/oci: TestHostileManifests TestIndexes TestWrongDiffIDIsInvalid TestBadLayersLeaveNothing TestBadAnswersOfARegistry TestRedirectIntoTheNetworkIsRefused"},
	{"12 configurations", "images/oci: TestHostileConfigurations; instance/guest: TestResolveUserRefuses; lxc: TestHostileRootStaysInside"},
	{"13 the root file system at run time", "lxc: TestHostileRootStaysInside TestHostileExitFileIsNotBelieved; instance/guest: TestLinksStayBeneathRoot TestOddFilesAreNoUsers TestWriteNames; instance/manager: TestPullFollowsLinksAsTheGuestDoes TestPullWritesOnlyWhereItIsTold TestPullBesideRenames"},
	{"15 crashes and others at the same time", "images/rootfs: TestHostile15 TestFullFileSystemIsExhausted; images/oci: TestKilledPullIsRepairedByTheNext TestTwoPullsAtOnceFetchEachBlobOnce TestFullDiskIsExhausted; cmd/brig: TestFailpoints TestNoRoomForBlobs"},
	{"16 files that are imported", "images/archive: TestFilesThatAreNoImages TestWhatATarballIs TestSplitImagesThatAreNone TestDisksThatAreRefused; images/incus: TestMetadataIsBounded TestAliasesOfYAMLAreNeverExpanded TestPropertiesThatAreBrigsOwnAreNotTaken; images/diskfile: TestHostile TestNothingElseIsOpened; images/simplestreams: TestHostileServers; images/oci: TestDamagedLayouts TestLayoutCannotLeaveItsDirectory TestDamagedDockerArchives TestFilesThatAreNoArchives"},
	{"17 names of files", "images/rootfs: TestHostile17Names"},
}

// Group 14 is of builders of images, which brig is not: it builds nothing that an image
// asks for.

func TestEveryGroupOfHostileImagesHasItsTests(t *testing.T) {
	for _, h := range hostile {
		t.Run(h.group, func(t *testing.T) {
			for part := range strings.SplitSeq(h.tests, "; ") {
				dir, names, _ := strings.Cut(part, ": ")
				source := testsIn(t, "../"+dir)
				for name := range strings.FieldsSeq(names) {
					found := regexp.MustCompile(`(?m)^func (`+name+`\w*)\(t \*testing\.T\)`).FindAllStringSubmatch(source, -1)
					if found == nil {
						t.Errorf("there is no test %s in %s", name, dir)
					}
					for _, f := range found {
						t.Logf("%s: %s", dir, f[1])
					}
				}
			}
		})
	}
}

func testsIn(t *testing.T, dir string) string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		data, err := os.ReadFile(dir + "/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}
