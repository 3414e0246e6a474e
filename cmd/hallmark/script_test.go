// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/cli"
	"github.com/hallmark-sc/hallmark/internal/gittest"
)

func TestMain(m *testing.M) {
	// The sandbox's first process and the workers are this binary under other
	// names; testscript.Main would not know them.
	if base := filepath.Base(os.Args[0]); base != "hallmark" && strings.HasPrefix(base, "hallmark-") {
		os.Exit(cli.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	}
	testscript.Main(sharing{m}, map[string]func(){"hallmark": main})
}

// shared is a directory for what is made once for many tests.
var shared string

// sharing runs tests while that directory is there.
type sharing struct{ *testing.M }

// Run implements testscript.TestingM.
func (s sharing) Run() int {
	var err error
	if shared, err = os.MkdirTemp("", "hallmark-tests-"); err != nil {
		fmt.Fprintln(os.Stderr, "making a directory:", err)
		return 1
	}
	defer os.RemoveAll(shared)
	// Runs wait for disks and checkpoints for a part of their time: another one
	// uses the processor meanwhile.
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(runtime.GOMAXPROCS(0)+1))
	}
	return s.M.Run()
}

func TestScript(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("OSV", filepath.Join(root, "testdata", "osv"))
			env.Setenv("RECORDED", filepath.Join(root, "internal", "forge", "testdata"))
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
			startRegistry(env)
			for _, name := range []string{"GOPROXY", "GOMODCACHE", "GOFLAGS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "NPM_CONFIG_REGISTRY", "npm_config_registry", "NODE_EXTRA_CA_CERTS"} {
				if v, ok := os.LookupEnv(name); ok {
					env.Setenv(name, v)
				}
			}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" { // may mount
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"answers":       cmdAnswers,
			"browsersignin": cmdBrowserSignIn,
			"changeid":      cmdChangeID("stdout"),
			"code":          cmdCode,
			"commit":        cmdCommit,
			"differs":       cmdDiffers,
			"dropeach":      cmdDropEach,
			"forge":         cmdForge,
			"get":           cmdGet,
			"gnupg":         cmdGnuPG,
			"heldid":        cmdChangeID("stderr"),
			"home":          cmdHome,
			"index":         cmdIndex,
			"issuer":        cmdIssuer,
			"issuertoken":   cmdIssuerToken,
			"key":           cmdKey,
			"layout":        cmdLayout,
			"makeimage":     cmdMakeImage,
			"metrics":       cmdMetrics,
			"noprovenance":  cmdNoProvenance,
			"nosecret":      cmdNoSecret,
			"payload":       cmdPayload,
			"payloads":      cmdPayloads,
			"person":        cmdPerson,
			"pindriver":     cmdPinDriver,
			"plantheader":   cmdPlantHeader,
			"plantsecret":   cmdPlantSecret,
			"policybundle":  cmdPolicyBundle,
			"predicate":     cmdPredicate,
			"receive":       cmdReceive,
			"registry":      cmdRegistry,
			"remote":        cmdRemote,
			"rootsdigest":   cmdRootsDigest,
			"runid":         cmdRunID,
			"serve":         cmdServe,
			"snapshot":      cmdSnapshot,
			"statement":     cmdStatement,
			"subst":         cmdSubst,
			"tamper":        cmdTamper,
			"tamperblob":    cmdTamperBlob,
			"tamperentry":   cmdTamperEntry,
			"tamperjson":    cmdTamperJSON,
			"upstream":      cmdUpstream,
			"warm":          cmdWarm,
		},
	})
}

// code N COMMAND… runs a command that must exit with N.
func cmdCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\nstdout:\n%s\nstderr:\n%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// key NAME MAIL makes a signing key; the first one becomes the only allowed
// signer.
func cmdKey(ts *testscript.TestScript, _ bool, args []string) {
	k, err := gittest.NewKey(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), k.PrivatePEM(), 0o600))
	allowed := ts.MkAbs("allowed_signers")
	if _, err := os.Stat(allowed); errors.Is(err, os.ErrNotExist) {
		ts.Check(os.WriteFile(allowed, []byte(k.AllowedSigner()+"\n"), 0o644))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".allowed"), []byte(k.AllowedSigner()+"\n"), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".mail"), []byte(args[1]), 0o644))
}

// home makes a home with the advisories of the repository.
func cmdHome(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Setenv("HALLMARK_HOME", ts.MkAbs("home"))
	for _, args := range [][]string{
		{"init", "--single-operator", "--allowed-signers", ts.MkAbs("allowed_signers"), "--registry", "go=" + ts.Getenv("REGISTRY"), "--registry", "npm=" + ts.Getenv("REGISTRY")},
		{"advisories", "sync", ts.Getenv("OSV")},
		{"policy", "set", "advisories.maxAge=3650d"},
	} {
		ts.Check(ts.Exec("hallmark", args...))
	}
}

// warmed is a toolchain cache that was made once for all scripts: builds of Go are
// most of the time of a script otherwise.
var warmed = sync.OnceValues(func() (string, error) {
	home := filepath.Join(shared, "warm")
	for _, args := range [][]string{{"init", "--single-operator"}, {"cache", "warm", "fmt"}} {
		cmd := exec.Command("hallmark", append(args, "--home", home)...)
		cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(shared, "state"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("hallmark %s: %w\n%s", args[0], err, out)
		}
	}
	return filepath.Join(home, "toolchain-cache"), nil
})

// warm gives the home what "hallmark cache warm fmt" makes.
func cmdWarm(ts *testscript.TestScript, _ bool, _ []string) {
	cache, err := warmed()
	ts.Check(err)
	ts.Check(ts.Exec("cp", "-a", cache, filepath.Join(ts.Getenv("HALLMARK_HOME"), "toolchain-cache")))
}

// commit DIR KEY MESSAGE commits everything in DIR; KEY "-" leaves it unsigned.
func cmdCommit(ts *testscript.TestScript, _ bool, args []string) {
	opt := gittest.Options{Message: args[2], Name: "Dev", Mail: "dev@example.org", Time: time.Now().Add(-time.Hour)}
	if args[1] != "-" {
		pem, err := os.ReadFile(ts.MkAbs(args[1] + ".key"))
		ts.Check(err)
		mail, err := os.ReadFile(ts.MkAbs(args[1] + ".mail"))
		ts.Check(err)
		opt.Key, err = gittest.ParseKey(pem, string(mail))
		ts.Check(err)
		opt.Mail = string(mail)
	}
	_, err := gittest.CommitAll(ts.MkAbs(args[0]), opt)
	ts.Check(err)
}

func cmdTamper(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	offset, err := strconv.Atoi(args[1])
	ts.Check(err)
	b, err := os.ReadFile(path)
	ts.Check(err)
	b[offset%len(b)] ^= 1
	ts.Check(os.WriteFile(path, b, 0o644))
}

// tamperjson FILE payload flips a bit in the payload of the first bundle.
func cmdTamperJSON(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	lines := readLines(ts, path)
	var bundle map[string]any
	ts.Check(json.Unmarshal([]byte(lines[0]), &bundle))
	env := bundle["dsseEnvelope"].(map[string]any)
	payload, err := base64.StdEncoding.DecodeString(env[args[1]].(string))
	ts.Check(err)
	payload[len(payload)/2] ^= 1
	env[args[1]] = base64.StdEncoding.EncodeToString(payload)
	b, err := json.Marshal(bundle)
	ts.Check(err)
	lines[0] = string(b)
	ts.Check(os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644))
}

// tamperentry LOGDIR flips a bit in every entry bundle of a log.
func cmdTamperEntry(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(filepath.WalkDir(filepath.Join(ts.MkAbs(args[0]), "tile", "entries"), func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		b[len(b)/2] ^= 1
		if err := os.Chmod(p, 0o644); err != nil {
			return err
		}
		return os.WriteFile(p, b, 0o644)
	}))
}

func cmdRootsDigest(ts *testscript.TestScript, _ bool, _ []string) {
	b, err := os.ReadFile(filepath.Join(ts.Getenv("HALLMARK_HOME"), "roots.json"))
	ts.Check(err)
	ts.Setenv("ROOTS", string(hallmark.DigestOf(b)))
}

// secretParts are joined at run time, so that no file of ours holds a credential.
func secretParts() []string { return []string{"ghp_", "16C7e42F292c6912E7710c838347Ae178B4a"} }

func cmdPlantSecret(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.MkdirAll(filepath.Dir(ts.MkAbs(args[0])), 0o755))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte("token = \""+strings.Join(secretParts(), "")+"\"\n"), 0o644))
}

// plantheader DIR puts the secret where the signature of the newest commit is.
func cmdPlantHeader(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	git := func(stdin string, args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		ts.Check(err)
		return string(out)
	}
	head, body, _ := strings.Cut(git("", "cat-file", "commit", "HEAD"), "\n\n")
	head, _, _ = strings.Cut(head, "\ngpgsig ")
	id := git(head+"\ngpgsig "+strings.Join(secretParts(), "")+"\n\n"+body, "hash-object", "-t", "commit", "-w", "--stdin")
	git("", "update-ref", "HEAD", strings.TrimSpace(id))
}

// nosecret DIR checks that neither output nor any file of DIR holds the secret.
func cmdNoSecret(ts *testscript.TestScript, _ bool, args []string) {
	secret := []byte(strings.Join(secretParts(), ""))
	for _, name := range []string{"stdout", "stderr"} {
		if strings.Contains(ts.ReadFile(name), string(secret)) {
			ts.Fatalf("%s holds the secret", name)
		}
	}
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.Contains(b, secret) {
			return fmt.Errorf("%s holds the secret", p)
		}
		return err
	}))
	for _, line := range readLines(ts, filepath.Join(ts.MkAbs(args[0]), "evidence.jsonl")) {
		if bytes.Contains(payloadOf(ts, line), secret) {
			ts.Fatalf("a statement holds the secret")
		}
	}
}

func cmdNoProvenance(ts *testscript.TestScript, _ bool, args []string) {
	for _, line := range readLines(ts, ts.MkAbs(args[0])) {
		if bytes.Contains(payloadOf(ts, line), []byte(`"predicateType":"https://slsa.dev/provenance/v1"`)) {
			ts.Fatalf("%s holds provenance", args[0])
		}
	}
}

// predicate FILE TYPE TEXT finds a statement of the type whose predicate holds the
// text.
func cmdPredicate(ts *testscript.TestScript, neg bool, args []string) {
	found := false
	for _, line := range readLines(ts, ts.MkAbs(args[0])) {
		p := payloadOf(ts, line)
		found = found || bytes.Contains(p, []byte(`"predicateType":"`+args[1]+`"`)) && bytes.Contains(p, []byte(args[2]))
	}
	if found == neg {
		ts.Fatalf("%s: a statement of type %s with %s: %t", args[0], args[1], args[2], found)
	}
}

// dropeach DIR ARTIFACT removes each line of evidence in turn: never allowed.
func cmdDropEach(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	path := filepath.Join(dir, "evidence.jsonl")
	lines := readLines(ts, path)
	whole := strings.Join(lines, "\n") + "\n"
	defer os.WriteFile(path, []byte(whole), 0o644)
	for i := range lines {
		rest := slices.Delete(slices.Clone(lines), i, i+1)
		ts.Check(os.WriteFile(path, []byte(strings.Join(rest, "\n")+"\n"), 0o644))
		if err := ts.Exec("hallmark", "verify", filepath.Join(dir, args[1]), "--evidence", dir); err == nil {
			ts.Fatalf("allowed without line %d of the evidence", i+1)
		}
	}
}

// pindriver NAME reads PIN, the value that enables a driver, from what doctor
// printed.
func cmdPinDriver(ts *testscript.TestScript, _ bool, args []string) {
	m := regexp.MustCompile(`sast\.drivers=(` + regexp.QuoteMeta(args[0]) + `=sha256:[0-9a-f]{64})`).FindStringSubmatch(ts.ReadFile("stdout"))
	if m == nil {
		ts.Fatalf("no command enables %s", args[0])
	}
	ts.Setenv("PIN", m[1])
}

// snapshot DIR FILE lists every file with its digest.
func cmdSnapshot(ts *testscript.TestScript, _ bool, args []string) {
	var out []string
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(p, "-shm") || strings.HasSuffix(p, "-wal") {
			return err
		}
		b, err := os.ReadFile(p)
		out = append(out, p+" "+string(hallmark.DigestOf(b)))
		return err
	}))
	sort.Strings(out)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.Join(out, "\n")+"\n"), 0o644))
}

// policybundle HOME DOCUMENT FILE finds the logged signatures of a policy document.
func cmdPolicyBundle(ts *testscript.TestScript, _ bool, args []string) {
	document, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	digest := []byte(hallmark.DigestOf(document).Hex())
	var out []byte
	ts.Check(filepath.WalkDir(filepath.Join(ts.MkAbs(args[0]), "blobs"), func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil && bytes.HasPrefix(b, []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle`)) && bytes.Contains(payloadOf(ts, string(b)), digest) {
			out = append(append(out, b...), '\n')
		}
		return err
	}))
	if len(out) == 0 {
		ts.Fatalf("no signature of %s", args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), out, 0o644))
}

func readLines(ts *testscript.TestScript, path string) []string {
	b, err := os.ReadFile(path)
	ts.Check(err)
	var lines []string
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		lines = append(lines, sc.Text())
	}
	ts.Check(sc.Err())
	return lines
}

func payloadOf(ts *testscript.TestScript, line string) []byte {
	var bundle struct {
		DSSE struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	ts.Check(json.Unmarshal([]byte(line), &bundle))
	return bundle.DSSE.Payload
}
