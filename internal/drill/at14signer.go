// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
	"github.com/hallmark-sc/hallmark/internal/attest"
	"github.com/hallmark-sc/hallmark/internal/build"
	"github.com/hallmark-sc/hallmark/internal/notary"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
	"github.com/hallmark-sc/hallmark/internal/sign"
	"github.com/hallmark-sc/hallmark/intoto"
)

// at14signer is who asks the signer of a server for what nobody earned.
func at14signer() []Case {
	return []Case{
		{
			Attack: "AT-14", Letter: "l", Does: "a server that was taken over asks for provenance of what nobody built, with a permit of its own making",
			Control: "the keys are with a signer that wants the observations of that build, which it signed before", Stops: hallmark.CodeSignerObservationMissing,
			Residual: "a server that invents whole builds, each of them for everybody to see in the log", attack: takenServer,
		},
		{
			Attack: "AT-14", Letter: "m", Does: "a process of another user of the machine asks the signer",
			Control: "the signer answers the one user that the kernel must name", Stops: hallmark.CodeSignerPeer,
			Residual: "root, and who becomes the server's user", attack: otherUser,
		},
		{
			Attack: "AT-14", Letter: "n", Does: "a step connects to the socket of the signer and asks",
			Control: "the sandbox: own network and files only", Stops: hallmark.CodeSandboxNetworkClosed,
			Residual: "a kernel escape", attack: askFromStep,
		},
	}
}

// signerOf runs a signer of the throwaway home, for a user, until end is called. It
// is a part of this process: what it judges is the control, and not whose it is.
func (g *ground) signerOf(ctx context.Context, uid int) (socket string, end func() error, err error) {
	if err := os.MkdirAll(g.home.Signer(), 0o711); err != nil {
		return "", nil, err
	}
	n, done, err := app.OpenNotary(ctx, app.SignerConfig{Home: g.home.Home, For: uid, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", nil, err
	}
	l, err := notary.Listen(g.home.SignerSocket())
	if err != nil {
		done()
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- n.Serve(ctx, l) }()
	return g.home.SignerSocket(), func() error {
		cancel()
		err := <-ended
		done()
		return err
	}, nil
}

// asker speaks to a signer as whoever does not care who answers.
type asker struct{ net.Conn }

func ask(socket string) (asker, error) {
	// The name through its directory is short enough for the kernel.
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return asker{}, err
	}
	defer dir.Close()
	c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket)))
	return asker{c}, err
}

// signerAnswer is what the attacker reads of an answer.
type signerAnswer struct {
	Hello *struct {
		Challenge string `json:"challenge"`
	} `json:"hello"`
	Sign *struct {
		Bundle []byte `json:"bundle"`
	} `json:"sign"`
	Refused *struct {
		Code    hallmark.Code `json:"code"`
		Message string        `json:"message"`
	} `json:"refused"`
}

func (a asker) say(v any) (signerAnswer, error) {
	var out signerAnswer
	b, err := json.Marshal(v)
	if err != nil {
		return out, err
	}
	if err := a.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return out, err
	}
	// Who is refused may be cut off before all was said.
	_, werr := a.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	var head [4]byte
	if _, err := io.ReadFull(a, head[:]); err != nil {
		return out, errors.Join(werr, err)
	}
	raw := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(a, raw); err != nil {
		return out, err
	}
	return out, json.Unmarshal(raw, &out)
}

func (g *ground) sayHello(a asker) (signerAnswer, error) {
	r, err := rootsOf(g.home.Home)
	if err != nil {
		return signerAnswer{}, err
	}
	return a.say(map[string]any{"hello": map[string]any{"version": notary.Version, "trustDomain": r.TrustDomain}})
}

// neverBuilt is provenance by the server of an artifact that nobody built.
func neverBuilt(c Control, s *spy) ([]byte, hallmark.Digest, error) {
	st, err := attest.Provenance(attest.Build{
		Revision: hallmark.Revision{Repository: trustedRepository, Ref: "refs/heads/main", Commit: s.commit, Tree: s.commit}, BuilderID: intoto.BuilderServer,
		Pipeline: intoto.PipelineRef{Path: pipeline.PipelineFile, Digest: hallmark.DigestOf(nil)}, StartedOn: clock(), FinishedOn: clock(), Platform: map[string]string{"image": "host"},
		Requester: &intoto.Requester{Principals: []string{policy.RequesterOperator}, Authentication: "user"},
		Artifacts: []hallmark.Artifact{{Name: "never-built", Digest: hallmark.DigestOf([]byte("server " + c.String())), Size: 3}}, Manifest: hallmark.DigestOf(nil),
	})
	if err != nil {
		return nil, "", err
	}
	payload, err := st.Marshal()
	return payload, hallmark.DigestOf(intoto.PAE(intoto.PayloadType, payload)), err
}

// takenServer: without the control the server has the keys in its own process, and
// whoever has it makes the permit that its signer asks for.
func takenServer(ctx context.Context, g *ground, c Control) (out effect, err error) {
	s, err := g.spy()
	if err != nil {
		return effect{}, err
	}
	// The policy lets the server build: it is not what stops the attack.
	rules := policy.FirstBuildRules(nil)
	here := policy.BuildPlatform{Builder: intoto.BuilderServer, Image: policy.ImageHost}
	if r := &rules.Rules[0]; !slices.Contains(r.Platforms, here) {
		r.Platforms = append(r.Platforms, here)
	}
	if err := g.rule(ctx, rules, nil); err != nil {
		return effect{}, err
	}
	state, err := app.PolicyShow(ctx, g.home.Home)
	if err != nil {
		return effect{}, err
	}
	payload, digest, err := neverBuilt(c, s)
	if err != nil {
		return effect{}, err
	}
	allowed := hallmark.Decision{Effect: hallmark.Allow, Checks: []hallmark.CheckResult{}}
	var bundle []byte
	if c == Off {
		l, err := openLedger(ctx, g.home.Home, nil)
		if err != nil {
			return effect{}, err
		}
		b, err := l.signer.Sign(ctx, sign.Request{Identity: sign.Server, Statement: payload, Permit: &sign.Permit{Statement: digest, BuildPolicy: state.Digest, Decision: allowed}})
		if err = errors.Join(err, l.close()); err != nil {
			return effect{}, err
		}
		bundle = b.JSON
	} else {
		socket, end, err := g.signerOf(ctx, os.Geteuid())
		if err != nil {
			return effect{}, err
		}
		defer func() { err = errors.Join(err, end()) }()
		a, err := ask(socket)
		if err != nil {
			return effect{}, err
		}
		defer a.Close()
		hello, err := g.sayHello(a)
		if err != nil || hello.Hello == nil {
			return effect{}, errors.Join(fmt.Errorf("the signer says no hello: %+v", hello.Refused), err)
		}
		got, err := a.say(map[string]any{"sign": map[string]any{"identity": "server", "statement": payload, "permit": notary.Permit{
			Statement: digest, Policy: state.Digest, Decision: allowed, Challenge: hello.Hello.Challenge}}})
		if err != nil {
			return effect{}, err
		}
		if got.Refused != nil {
			return effect{reason: got.Refused.Code, detail: g.plain(got.Refused.Message)}, nil
		}
		bundle = got.Sign.Bundle
	}
	v, err := g.verifier.Verify(bundle)
	if err != nil {
		return effect{}, err
	}
	return effect{done: v.Signer() == "server" && v.MaxLevel() == "SLSA_BUILD_LEVEL_3", detail: "provenance by the server of an artifact that nobody built verifies"}, nil
}

// otherUser: without the control the signer is for whoever asks; here it is for us,
// and with it for somebody else.
func otherUser(ctx context.Context, g *ground, c Control) (out effect, err error) {
	uid := os.Geteuid()
	if c == On {
		uid++
	}
	socket, end, err := g.signerOf(ctx, uid)
	if err != nil {
		return effect{}, err
	}
	defer func() { err = errors.Join(err, end()) }()
	a, err := ask(socket)
	if err != nil {
		return effect{}, err
	}
	defer a.Close()
	name := strings.Repeat("d", 40)
	rec := hallmark.CheckRecord{Check: "tests", Outcome: hallmark.Pass, Revision: hallmark.Revision{Repository: trustedRepository, Commit: name, Tree: name}, StartedOn: clock(), FinishedOn: clock()}
	st, err := attest.TestResult(rec, nil, nil, nil)
	if err != nil {
		return effect{}, err
	}
	payload, err := st.Marshal()
	if err != nil {
		return effect{}, err
	}
	got, err := a.say(map[string]any{"sign": map[string]any{"identity": "observer", "statement": payload}})
	if err != nil {
		return effect{}, err
	}
	if got.Refused != nil {
		return effect{reason: got.Refused.Code, detail: g.plain(got.Refused.Message)}, nil
	}
	v, err := g.verifier.Verify(got.Sign.Bundle)
	return effect{done: err == nil && v.Signer() == "observer", detail: "tests that nobody ran are signed as passed"}, err
}

// askFromStep: without the control the step has the network and the files of the
// machine, and the user for whom the signer signs.
func askFromStep(ctx context.Context, g *ground, c Control) (out effect, err error) {
	r, err := rootsOf(g.home.Home)
	if err != nil {
		return effect{}, err
	}
	hello, err := json.Marshal(map[string]any{"hello": map[string]any{"version": notary.Version, "trustDomain": r.TrustDomain}})
	if err != nil {
		return effect{}, err
	}
	try := fmt.Sprintf(`perl -MSocket -e 'chdir("%s") && socket(S, PF_UNIX, SOCK_STREAM, 0) && connect(S, pack_sockaddr_un("socket")) or exit 1; syswrite(S, pack("N/a*", q(%s))); sysread(S, $b, 65536) > 0 or exit 1; print $b'`, g.home.Signer(), hello)
	p, err := g.project("asks the signer", map[string]string{pipeline.PipelineFile: definition("sh ask.txt", "test -s out/said", "out/said"),
		"ask.txt": "mkdir -p out\nif perl -MSocket -e 1; then " + try + " > out/said || echo " + none + " > out/said; else echo no perl > out/said; fi\n"})
	if err != nil {
		return effect{}, err
	}
	_, end, err := g.signerOf(ctx, os.Geteuid())
	if err != nil {
		return effect{}, err
	}
	defer func() { err = errors.Join(err, end()) }()
	f, err := g.run(ctx, p, compose(func(b *app.BuildParts) {
		if c == Off {
			b.Engine = func(place app.BuildPlace) build.Engine { return unboxed{place: place, promises: g.promises} }
		}
	}))
	if err != nil {
		return effect{}, err
	}
	said := string(f.artifact("said"))
	switch {
	case strings.Contains(said, `"challenge":"`):
		return effect{done: true, detail: "the signer answers a build step"}, nil
	case strings.TrimSpace(said) == none:
		return effect{reason: hallmark.CodeSandboxNetworkClosed, detail: "no such socket in the room"}, f.guaranteed("no-network")
	}
	return effect{}, hallmark.Errorf(hallmark.KindUnavailable, "the step could not try (it needs perl): %.40q, %s", said, f.codes())
}
