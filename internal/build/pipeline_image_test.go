// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hallmark-sc/hallmark"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const withImage = `apiVersion: hallmark/v1
kind: Pipeline
build:
  image: localhost:5000/tools@` + someDigest + `
  steps:
    - run: make
  artifacts:
    - out/hello
    - image:
        name: app
        base: example.org/base@` + someDigest + `
        platforms: [linux/amd64, linux/arm64]
        files:
          - from: {linux/amd64: a, linux/arm64: b}
            to: /usr/bin/app
            mode: "0755"
          - {from: conf, to: /etc/app.conf}
        entrypoint: [/usr/bin/app]
        cmd: [--help]
        env: {A: "1"}
        user: "1000:1000"
        workdir: /srv
        labels: {l: v}
`

func TestParseImages(t *testing.T) {
	p, err := ParsePipeline("p.yaml", []byte(withImage))
	if err != nil {
		t.Fatal(err)
	}
	want := ImageArtifact{
		Name: "app", Base: ImageRef{"example.org/base", someDigest}, Platforms: []string{"linux/amd64", "linux/arm64"},
		Files: []ImageFile{
			{From: map[string]string{"linux/amd64": "a", "linux/arm64": "b"}, To: "/usr/bin/app", Mode: 0o755},
			{From: map[string]string{"": "conf"}, To: "/etc/app.conf"},
		},
		Entrypoint: []string{"/usr/bin/app"}, Cmd: []string{"--help"}, Env: map[string]string{"A": "1"}, User: "1000:1000", Workdir: "/srv", Labels: map[string]string{"l": "v"},
	}
	if diff := cmp.Diff([]ImageArtifact{want}, p.Images); diff != "" {
		t.Error(diff)
	}
	if p.Toolchain != (ImageRef{"localhost:5000/tools", someDigest}) || len(p.Artifacts) != 1 {
		t.Errorf("parsed %+v", p)
	}
	for platform, want := range map[string][]string{"linux/amd64": {"a", "conf"}, "linux/arm64": {"b", "conf"}} {
		if got, err := p.Images[0].Sources(platform); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %v, %v", platform, got, err)
		}
	}
	p, err = ParsePipeline("p.yaml", []byte(strings.Replace(withImage, "localhost:5000/tools@"+someDigest, "host", 1)))
	if err != nil || p.Toolchain.Digest != "" {
		t.Errorf("host: %+v, %v", p, err)
	}
}

// TestParseImagesRefuses names file, line and column of each mistake.
func TestParseImagesRefuses(t *testing.T) {
	edit := func(from, to string) string {
		if !strings.Contains(withImage, from) {
			t.Fatalf("%q is not there", from)
		}
		return strings.Replace(withImage, from, to, 1)
	}
	ref := "localhost:5000/tools@" + someDigest
	for name, c := range map[string]struct {
		text, at string
		code     hallmark.Code
	}{
		"tag":              {edit(ref, "debian:12"), "p.yaml:4:10", hallmark.CodeImageNotByDigest},
		"no tag, latest":   {edit(ref, "debian"), "p.yaml:4:10", hallmark.CodeImageNotByDigest},
		"tag and digest":   {edit(ref, "debian:12@"+someDigest), "p.yaml:4:10", hallmark.CodeImageNotByDigest},
		"short digest":     {edit(ref, "debian@sha256:e3b0"), "p.yaml:4:10", hallmark.CodeImageNotByDigest},
		"weak digest":      {edit(ref, "debian@md5:d41d8cd98f00b204e9800998ecf8427e"), "p.yaml:4:10", hallmark.CodeImageNotByDigest},
		"upper case":       {edit(ref, "Debian@"+someDigest), "p.yaml:4:10", hallmark.CodeImageNotByDigest},
		"name climbs":      {edit(ref, "../x@"+someDigest), "p.yaml:4:10", hallmark.CodeImageNotByDigest},
		"scratch":          {edit(ref, "scratch"), "p.yaml:4:10", hallmark.CodeImageNotByDigest},
		"base by tag":      {edit("example.org/base@"+someDigest, "base:1"), "p.yaml:11:15", hallmark.CodeImageNotByDigest},
		"base of the host": {edit("example.org/base@"+someDigest, "host"), "p.yaml:11:15", hallmark.CodeImageNotByDigest},
		"no base":          {edit("        base: example.org/base@"+someDigest+"\n", ""), "p.yaml:10:9", hallmark.CodePipelineInvalid},
		"unknown key":      {edit("workdir", "volumes"), "p.yaml:22:9", hallmark.CodePipelineInvalid},
		"other artifact":   {edit("    - image:", "    - file:"), "p.yaml:9:7", hallmark.CodePipelineInvalid},
		"name":             {edit("name: app", "name: ../app"), "p.yaml:10:15", hallmark.CodePipelineArtifactName},
		"name taken":       {edit("out/hello", "out/app.oci"), "p.yaml:10:15", hallmark.CodePipelineArtifactName},
		"from climbs":      {edit("from: conf", "from: ../conf"), "p.yaml:17:20", hallmark.CodePipelineInvalid},
		"from is absolute": {edit("from: conf", "from: /etc/passwd"), "p.yaml:17:20", hallmark.CodePipelineInvalid},
		"platform lacks":   {edit(", linux/arm64: b", ""), "p.yaml:14:19", hallmark.CodePipelineInvalid},
		"to climbs":        {edit("/etc/app.conf", "/../etc"), "p.yaml:17:30", hallmark.CodePipelineInvalid},
		"to is relative":   {edit("/etc/app.conf", "etc"), "p.yaml:17:30", hallmark.CodePipelineInvalid},
		"to is the root":   {edit("/etc/app.conf", "/"), "p.yaml:17:30", hallmark.CodePipelineInvalid},
		"to twice":         {edit("/etc/app.conf", "/usr/bin/app"), "p.yaml:17:30", hallmark.CodePipelineInvalid},
		"to below a file":  {edit("/etc/app.conf", "/usr/bin/app/x"), "p.yaml:17:30", hallmark.CodePipelineInvalid},
		"to is a whiteout": {edit("/etc/app.conf", "/etc/.wh.passwd"), "p.yaml:17:30", hallmark.CodePipelineInvalid},
		"set-user bit":     {edit(`"0755"`, `"4755"`), "p.yaml:16:19", hallmark.CodePipelineInvalid},
		"mode is a number": {edit(`"0755"`, `0755`), "p.yaml:16:19", hallmark.CodePipelineInvalid},
		"user":             {edit(`"1000:1000"`, `"a b"`), "p.yaml:21:15", hallmark.CodePipelineInvalid},
		"workdir":          {edit("/srv", "srv"), "p.yaml:22:18", hallmark.CodePipelineInvalid},
		"platform twice":   {edit("linux/arm64]", "linux/amd64]"), "p.yaml:12:34", hallmark.CodePipelineInvalid},
		"Dockerfile":       {edit("        base: example.org/base@"+someDigest+"\n", "        dockerfile: Dockerfile\n"), "p.yaml:14:11", hallmark.CodePipelineInvalid},
		"anchor":           {edit("    - image:\n", "    - image: &x\n"), "p.yaml:9:14", hallmark.CodePipelineInvalid},
	} {
		_, err := ParsePipeline("p.yaml", []byte(c.text))
		if err == nil || hallmark.CodeOf(err) != c.code || !strings.HasPrefix(err.Error(), c.at) {
			t.Errorf("%s: %v (%s), want %s at %s", name, err, hallmark.CodeOf(err), c.code, c.at)
		}
	}
}

func TestSchemaIsJSON(t *testing.T) {
	var v struct {
		Defs map[string]any `json:"$defs"`
	}
	if err := json.Unmarshal(Schema(), &v); err != nil || v.Defs["imageArtifact"] == nil {
		t.Errorf("%v, %v", v, err)
	}
}
