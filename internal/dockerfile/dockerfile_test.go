// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package dockerfile

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/hallmark-sc/hallmark"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// whole parses and evaluates a Dockerfile; every image has the given configuration.
func whole(text string, cfg Config, base v1.Config) (*Plan, []Result, error) {
	cfg.Name, cfg.Text = "Dockerfile", []byte(text)
	if cfg.Platform == "" {
		cfg.Platform = "linux/amd64"
	}
	if cfg.BuildPlatform == "" {
		cfg.BuildPlatform = "linux/amd64"
	}
	p, err := Parse(cfg)
	if err != nil {
		return nil, nil, err
	}
	var out []Result
	for n, s := range p.Stages {
		c := base
		switch {
		case s.Base.Empty:
			c = v1.Config{}
		case s.Base.Image == nil:
			c = out[s.Base.Stage].Config
		}
		r, err := p.Evaluate(n, c)
		if err != nil {
			return p, nil, err
		}
		out = append(out, r)
	}
	return p, out, nil
}

func TestRefusesByLine(t *testing.T) {
	const from = "FROM example.org/base@" + digest + "\n"
	for text, want := range map[string]struct {
		at   string
		code hallmark.Code
	}{
		"FROM debian:12\n":                                           {"Dockerfile:1: FROM \"debian:12", hallmark.CodeImageNotByDigest},
		"FROM debian\n":                                              {"Dockerfile:1: FROM \"debian", hallmark.CodeImageNotByDigest},
		"FROM debian:12@" + digest + "\n":                            {"Dockerfile:1: FROM \"debian:12@", hallmark.CodeImageNotByDigest},
		"ARG B=debian:12\n\nFROM $B\n":                               {"Dockerfile:3: FROM \"debian:12", hallmark.CodeImageNotByDigest},
		"ARG B\nFROM x@$B\n":                                         {"Dockerfile:2: FROM \"x@", hallmark.CodeImageNotByDigest},
		"FROM x@sha512:aa\n":                                         {"Dockerfile:1: ", hallmark.CodeImageNotByDigest},
		from + "COPY --from=debian:12 /a /a\n":                       {"Dockerfile:2: COPY --from \"debian:12", hallmark.CodeImageNotByDigest},
		from + "COPY --from=1 /a /a\n":                               {"Dockerfile:2: COPY --from=1: there is no such stage", hallmark.CodeImageDockerfileInvalid},
		from + "COPY --from=$X /a /a\n":                              {"Dockerfile:2: ", hallmark.CodeImageDockerfile},
		from + "ADD https://example.org/x /x\n":                      {"Dockerfile:2: ADD https://", hallmark.CodeImageDockerfile},
		from + "ARG U=https://example.org/x\nADD $U /x\n":            {"Dockerfile:3: ADD https://", hallmark.CodeImageDockerfile},
		from + "ADD git@example.org:a/b.git /x\n":                    {"Dockerfile:2: ADD git@", hallmark.CodeImageDockerfile},
		from + "ADD --checksum=sha256:aa x /x\n":                     {"Dockerfile:2: ADD --checksum", hallmark.CodeImageDockerfile},
		from + "\nRUN --network=host true\n":                         {"Dockerfile:3: RUN --network=host", hallmark.CodeImageDockerfile},
		from + "RUN --network=default true\n":                        {"Dockerfile:2: RUN --network=default", hallmark.CodeImageDockerfile},
		from + "RUN --security=insecure true\n":                      {"Dockerfile:2: RUN --security=insecure", hallmark.CodeImageDockerfile},
		from + "RUN --device=x true\n":                               {"Dockerfile:2: RUN --device", hallmark.CodeImageDockerfile},
		from + "RUN --mount=type=ssh true\n":                         {"Dockerfile:2: RUN --mount=type=ssh", hallmark.CodeImageDockerfile},
		from + "RUN --mount=type=cache,target=/x true\n":             {"Dockerfile:2: RUN --mount=type=cache", hallmark.CodeImageDockerfile},
		from + "RUN --mount=type=secret,id=x true\n":                 {"Dockerfile:2: RUN --mount=type=secret", hallmark.CodeImageDockerfile},
		from + "RUN --mount=type=bind,target=/x true\n":              {"Dockerfile:2: RUN --mount=type=bind", hallmark.CodeImageDockerfile},
		from + "RUN --mount=type=tmpfs,target=/x true\n":             {"Dockerfile:2: RUN --mount=type=tmpfs", hallmark.CodeImageDockerfile},
		from + "RUN <<EOF\n#!/usr/bin/python3\nprint()\nEOF\n":       {"Dockerfile:2: RUN: a here-document", hallmark.CodeImageDockerfile},
		from + "CMD <<EOF\nx\nEOF\n":                                 {"Dockerfile:3: unknown instruction", hallmark.CodeImageDockerfile},
		from + "ONBUILD RUN true\n":                                  {"Dockerfile:2: ONBUILD", hallmark.CodeImageDockerfile},
		from + "MAINTAINER me\n":                                     {"Dockerfile:2: MAINTAINER", hallmark.CodeImageDockerfile},
		"# syntax=docker/dockerfile:1\n" + from:                      {"Dockerfile:1: # syntax=", hallmark.CodeImageDockerfile},
		"#syntax=x\n" + from:                                         {"Dockerfile:1: # syntax=", hallmark.CodeImageDockerfile},
		"# check=skip=all\n" + from:                                  {"Dockerfile:1: # check=", hallmark.CodeImageDockerfile},
		"// syntax=x\n" + from:                                       {"Dockerfile:1: unknown instruction", hallmark.CodeImageDockerfile},
		from + "COPY --parents a b /x/\n":                            {"Dockerfile:2: COPY --parents", hallmark.CodeImageDockerfile},
		from + "COPY --exclude=a . /x/\n":                            {"Dockerfile:2: COPY --exclude", hallmark.CodeImageDockerfile},
		from + "COPY --chmod=4755 a /x\n":                            {"Dockerfile:2: COPY --chmod=4755", hallmark.CodeImageDockerfile},
		from + "COPY --chmod=u+s a /x\n":                             {"Dockerfile:2: COPY --chmod", hallmark.CodeImageDockerfile},
		from + "COPY ../x /x\n":                                      {"Dockerfile:2: COPY ../x", hallmark.CodeImageDockerfile},
		from + "COPY a/../../x /x\n":                                 {"Dockerfile:2: COPY a/..", hallmark.CodeImageDockerfile},
		from + "COPY a b /x\n":                                       {"Dockerfile:2: ", hallmark.CodeImageDockerfileInvalid},
		from + "COPY --chown='a b' a /x\n":                           {"Dockerfile:2: ", hallmark.CodeImageDockerfileInvalid},
		from + "USER 'a b'\n":                                        {"Dockerfile:2: USER", hallmark.CodeImageDockerfileInvalid},
		from + "USER $NOBODY\n":                                      {"Dockerfile:2: ", hallmark.CodeImageDockerfileInvalid},
		from + "EXPOSE 0\n":                                          {"Dockerfile:2: EXPOSE", hallmark.CodeImageDockerfileInvalid},
		from + "EXPOSE 80/icmp\n":                                    {"Dockerfile:2: EXPOSE", hallmark.CodeImageDockerfileInvalid},
		from + "STOPSIGNAL rm\n":                                     {"Dockerfile:2: STOPSIGNAL", hallmark.CodeImageDockerfileInvalid},
		from + "HEALTHCHECK --start-interval=5s CMD true\n":          {"Dockerfile:2: HEALTHCHECK --start-interval", hallmark.CodeImageDockerfile},
		from + "BUILD x\n":                                           {"Dockerfile:2: unknown instruction", hallmark.CodeImageDockerfile},
		from + "RUN true\nCOPY a\n":                                  {"Dockerfile:3: ", hallmark.CodeImageDockerfileInvalid},
		from + "ENV A=${B\n":                                         {"Dockerfile:2: ", hallmark.CodeImageDockerfileInvalid},
		"RUN true\n" + from:                                          {"Dockerfile:1: ", hallmark.CodeImageDockerfileInvalid},
		"":                                                           {"Dockerfile:1: ", hallmark.CodeImageDockerfileInvalid},
		"# nothing\n":                                                {"Dockerfile:1: ", hallmark.CodeImageDockerfileInvalid},
		from + "RUN \x00true\n":                                      {"Dockerfile:1: ", hallmark.CodeImageDockerfileInvalid},
		"FROM scratch AS a\nFROM scratch AS a\n":                     {"Dockerfile:2: the stage", hallmark.CodeImageDockerfileInvalid},
		"FROM --platform=$X scratch\n":                               {"Dockerfile:1: ", hallmark.CodeImageDockerfileInvalid},
		"FROM --platform=linux/arm64 x@" + digest + "\n\nRUN true\n": {"Dockerfile:3: RUN in a stage for linux/arm64", hallmark.CodeImageDockerfile},
		strings.Repeat("FROM scratch\n", maxStages+1):                {"Dockerfile:51: ", hallmark.CodeImageDockerfile},
		"FROM scratch\n" + strings.Repeat("ENV A=b\n", maxSteps+1):   {"Dockerfile:1: more than", hallmark.CodeImageDockerfile},
		"FROM scratch\nCOPY <<a b /x\nhello\na\n":                    {"Dockerfile:2: ", hallmark.CodeImageDockerfileInvalid},
	} {
		_, _, err := whole(text, Config{}, v1.Config{})
		if err == nil {
			t.Errorf("%.100q: it was taken", text)
			continue
		}
		if !strings.HasPrefix(err.Error(), want.at) || hallmark.CodeOf(err) != want.code {
			t.Errorf("%.100q: %s (%s), want %s at %s", text, err, hallmark.CodeOf(err), want.code, want.at)
		}
	}
	if _, _, err := whole(from+"RUN true\n", Config{}, v1.Config{OnBuild: []string{"RUN evil"}}); err == nil || !strings.Contains(err.Error(), "Dockerfile:1: the base has ONBUILD") {
		t.Errorf("triggers of the base: %v", err)
	}
	if _, _, err := whole(from, Config{Target: "x"}, v1.Config{}); hallmark.CodeOf(err) != hallmark.CodeImageDockerfileInvalid {
		t.Errorf("a stage that is not there: %v", err)
	}
	if _, _, err := whole(from, Config{Fixed: map[string]string{"X": "y"}}, v1.Config{}); err == nil || !strings.Contains(err.Error(), "build argument X") {
		t.Errorf("an argument that nothing asks for: %v", err)
	}
}

func TestEvaluate(t *testing.T) {
	text := `ARG IMG=example.org/base
FROM $IMG@` + digest + ` AS one
ARG V=1 TARGETARCH
ARG P
ENV A=x B="$A y" C=$V
ENV D=${B}-$C PATH=$PATH:/more
WORKDIR /srv
WORKDIR sub
RUN echo $HOME \
  again
RUN ["a", "b c"]
USER app
SHELL ["/bin/bash", "-c"]
RUN <<EOF
one
two
EOF
RUN cat <<'X' > y
$text
X
FROM one AS two
COPY --chown=1:2 a* dir/
COPY <<EOF <<'RAW' /etc/
hello $C
EOF
raw $C
RAW
ENTRYPOINT ["/e"]
FROM two AS unused
RUN never
FROM scratch
COPY --from=two --chmod=755 --link /a /b
COPY --from=example.org/other@` + digest + ` /x /y
CMD run $A
LABEL a=b c="d e"
EXPOSE 80 90-91/UDP
VOLUME ["/v"]
STOPSIGNAL SIGINT
HEALTHCHECK --interval=3s --retries=2 CMD ["x"]
`
	base := v1.Config{Env: []string{"PATH=/bin", "A=base"}, Cmd: []string{"sh"}, User: "root", Labels: map[string]string{"l": "m"}}
	p, got, err := whole(text, Config{Parameters: map[string]string{"P": "given", "OTHER": "z"}}, base)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Stages) != 3 || p.Stages[2].Base.Empty != true || len(p.Images) != 1 || p.Images[0].Name != "example.org/other" {
		t.Fatalf("stages %+v, images %+v", p.Stages, p.Images)
	}
	images, runs := p.Bases()
	if len(images) != 1 || !runs[images[0]] || images[0].Name != "example.org/base" {
		t.Errorf("bases %v, %v", images, runs)
	}
	env := []string{"A=x", "B=base y", "C=1", "D=base y-1", "P=given", "PATH=/bin:/more", "TARGETARCH=amd64", "V=1"}
	run := func(line int, dir, user string, argv ...string) Action {
		return Action{Line: line, User: user, Run: &Run{Argv: argv, Env: env, Dir: dir}}
	}
	want := [][]Action{{
		{Line: 7, Directory: "/srv", User: "root"}, {Line: 8, Directory: "/srv/sub", User: "root"},
		run(9, "/srv/sub", "root", "/bin/sh", "-c", "echo $HOME   again"), run(11, "/srv/sub", "root", "a", "b c"),
		run(14, "/srv/sub", "app", "/bin/bash", "-c", "one\ntwo\n"), run(18, "/srv/sub", "app", "/bin/bash", "-c", "cat <<'X' > y\n$text\nX"),
	}, {
		{Line: 22, Copy: &Copy{Context: true, Sources: []string{"a*"}, Dest: "/srv/sub/dir", IsDir: true, Owner: "1:2"}},
		{Line: 23, Copy: &Copy{Context: true, Inline: []Inline{{"EOF", "hello 1\n"}, {"RAW", "raw $C\n"}}, Dest: "/etc", IsDir: true}},
	}, {
		{Line: 32, Copy: &Copy{From: Base{Stage: 1}, Sources: []string{"a"}, Dest: "/b", Mode: 0o755, Link: true}},
		{Line: 33, Copy: &Copy{From: Base{Image: &Image{Name: "example.org/other", Digest: digest, Platform: "linux/amd64"}}, Sources: []string{"x"}, Dest: "/y"}},
	}}
	for i := range want {
		if d := cmp.Diff(want[i], got[i].Actions); d != "" {
			t.Errorf("stage %d:\n%s", i, d)
		}
	}
	last := got[2].Config
	if d := cmp.Diff(v1.Config{
		Env: []string{"PATH=" + DefaultPath}, Cmd: []string{"/bin/sh", "-c", "run $A"}, Labels: map[string]string{"a": "b", "c": "d e"}, Volumes: map[string]struct{}{"/v": {}},
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "90/udp": {}, "91/udp": {}}, StopSignal: "SIGINT",
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "x"}, Interval: 3e9, Retries: 2},
	}, last); d != "" {
		t.Error(d)
	}
	two := got[1].Config
	if two.Cmd != nil || two.Entrypoint[0] != "/e" || two.User != "app" || two.WorkingDir != "/srv/sub" || two.Labels["l"] != "m" || !cmp.Equal(two.Shell, []string{"/bin/bash", "-c"}) {
		t.Errorf("the second stage: %+v", two)
	}
	if !cmp.Equal(base.Env, []string{"PATH=/bin", "A=base"}) || len(base.Labels) != 1 {
		t.Errorf("the base was changed: %+v", base)
	}
}

func TestFixedArgumentsWin(t *testing.T) {
	_, got, err := whole("ARG A=1\nFROM scratch\nARG A\nENV X=$A\n", Config{Fixed: map[string]string{"A": "2"}, Parameters: map[string]string{"A": "3"}}, v1.Config{})
	if err != nil || got[0].Config.Env[1] != "X=2" {
		t.Errorf("%v, %v", got, err)
	}
	// An argument of the file alone is not an environment variable of the image.
	_, got, err = whole("FROM scratch\nARG A=1\n", Config{}, v1.Config{})
	if err != nil || len(got[0].Config.Env) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

func FuzzDockerfile(f *testing.F) {
	f.Add("FROM scratch\nCOPY a /b\n")
	f.Add("# escape=`\nARG A=b\nFROM x@" + digest + " AS a\nRUN <<EOF\nx\nEOF\nHEALTHCHECK NONE\nENV A=${B:-c}\n")
	f.Add("FROM scratch\nRUN [\"a\", \"b\"]\nEXPOSE 1-2/udp\nSHELL [\"a\"]\nVOLUME [\"x\"]\nONBUILD RUN x\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, got, err := whole(text, Config{Fixed: map[string]string{}}, v1.Config{})
		if err != nil {
			if hallmark.CodeOf(err) == "" || !strings.HasPrefix(err.Error(), "Dockerfile:") {
				t.Fatalf("an error without code or line: %v", err)
			}
			return
		}
		for n, r := range got {
			for _, a := range r.Actions {
				if a.Line < 1 || a.Line > strings.Count(text, "\n")+1 {
					t.Fatalf("stage %d of %d: line %d", n, len(p.Stages), a.Line)
				}
				if c := a.Copy; c != nil {
					for _, s := range c.Sources {
						if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "../") || s == ".." {
							t.Fatalf("source %q", s)
						}
					}
					if !strings.HasPrefix(c.Dest, "/") {
						t.Fatalf("destination %q", c.Dest)
					}
				}
			}
		}
	})
}
