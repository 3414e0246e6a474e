// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/durable"
	"github.com/hallmark-sc/hallmark/internal/pipeline"
	"github.com/hallmark-sc/hallmark/internal/policy"
)

// Limits on what a server sends of a run.
const (
	maxResults     = 2 << 30 // bytes, held in memory until they are written
	maxResultFiles = 100_000
	maxMessage     = 16 << 20
)

// RequestRun asks for a build.
func (c *Client) RequestRun(ctx context.Context, q RunRequest) (RunAnswer, error) {
	var out RunAnswer
	return out, c.call(ctx, http.MethodPost, "/api/v1/runs", q, &out)
}

// LetRun lets a change run.
func (c *Client) LetRun(ctx context.Context, change string) (ChangeAnswer, error) {
	return c.Act(ctx, change, "run")
}

// RunOf shows how a run stands.
func (c *Client) RunOf(ctx context.Context, id string) (RunView, error) {
	var out RunView
	return out, c.call(ctx, http.MethodGet, "/api/v1/runs/"+url.PathEscape(id), nil, &out)
}

// CancelRun gives a run up.
func (c *Client) CancelRun(ctx context.Context, id string) (RunAnswer, error) {
	var out RunAnswer
	return out, c.call(ctx, http.MethodPost, "/api/v1/runs/"+url.PathEscape(id)+"/cancel", nil, &out)
}

// Runs lists runs of the repositories that the caller may read; "" is any.
func (c *Client) Runs(ctx context.Context, repository, state string) ([]RunView, error) {
	body, err := c.stream(ctx, "/api/v1/runs", url.Values{"repository": {repository}, "state": {state}})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var out []RunView
	if err := json.NewDecoder(io.LimitReader(body, maxMessage)).Decode(&out); err != nil {
		return nil, hallmark.Errorf(hallmark.KindInvalid, "reading the answer of %s: %w", c.base.Host, err)
	}
	return out, nil
}

// RunLog returns the log of a step.
func (c *Client) RunLog(ctx context.Context, id, step string) (io.ReadCloser, error) {
	return c.stream(ctx, "/api/v1/runs/"+url.PathEscape(id)+"/logs/"+url.PathEscape(step), nil)
}

// stream asks for something long, without a limit of time.
func (c *Client) stream(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, hallmark.Errorf(hallmark.KindUsage, "making a request: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	long := *c.http
	long.Timeout = 0
	res, err := long.Do(r)
	if err != nil {
		return nil, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "asking %s: %w", c.base.Host, err), "is the server running, and its authority trusted? --authority FILE names it")
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	var f Failure
	if b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20)); err != nil || json.Unmarshal(b, &f) != nil || f.Message == "" {
		f.Message = "it answered " + res.Status
	}
	return nil, hallmark.WithHint(hallmark.Coded(kindOfStatus(res.StatusCode), f.Code, "%s: %s", c.base.Host, f.Message), f.Hint)
}

// Follow tells each message about a run until it ends, also when the server is
// started again meanwhile, and returns how it ended.
func (c *Client) Follow(ctx context.Context, id string, tell func(message []byte)) (RunView, error) {
	told, failed := 0, 0
	for {
		n, err := c.events(ctx, id, told, tell)
		told += n
		if ctx.Err() != nil {
			return RunView{}, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "following run %s: %w", id, ctx.Err()), "the run goes on: hallmark runs show "+id)
		}
		var v RunView
		if err == nil {
			if v, err = c.RunOf(ctx, id); err == nil && v.State.Ended() {
				// Between the two it may have said more.
				_, err = c.events(ctx, id, told, tell)
				return v, err
			}
		}
		if kind := hallmark.KindOf(err); err != nil && kind != hallmark.KindUnavailable {
			return v, err
		}
		if n > 0 {
			failed = 0
		}
		if failed++; failed > 60 {
			return v, hallmark.WithHint(hallmark.Errorf(hallmark.KindUnavailable, "following run %s: %w", id, err), "the run may go on: hallmark runs show "+id)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (c *Client) events(ctx context.Context, id string, told int, tell func([]byte)) (n int, err error) {
	body, err := c.stream(ctx, "/api/v1/runs/"+url.PathEscape(id)+"/events", nil)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxMessage)
	for i := 0; lines.Scan(); i++ {
		if i < told {
			continue
		}
		n++
		tell(bytes.Clone(lines.Bytes()))
	}
	if err := lines.Err(); err != nil {
		return n, hallmark.Errorf(hallmark.KindUnavailable, "reading events of run %s: %w", id, err)
	}
	return n, nil
}

// RunResult is the result directory of a run as it was fetched.
type RunResult struct {
	Decision  hallmark.Decision
	Revision  hallmark.Revision
	Artifacts []hallmark.Artifact
	Levels    []string
	Out       string
	Verified  bool
}

// CheckOut refuses a directory that can't take the results of a run.
func CheckOut(out string) error { return pipeline.CheckOut(out) }

// Results fetches the result directory of a run, as a local run leaves it: whole
// and durable, or not there. What it holds is the server's word until it is
// verified.
func (c *Client) Results(ctx context.Context, v RunView, out string) (RunResult, error) {
	out, err := filepath.Abs(out)
	if err != nil {
		return RunResult{}, hallmark.Errorf(hallmark.KindInvalid, "resolving %s: %w", out, err)
	}
	if err := pipeline.SweepOut(out); err != nil {
		return RunResult{}, fmt.Errorf("sweeping beside %s: %w", out, err)
	}
	body, err := c.stream(ctx, "/api/v1/runs/"+url.PathEscape(v.Run)+"/results", nil)
	if err != nil {
		return RunResult{}, err
	}
	defer body.Close()
	files, err := readResults(body)
	if err != nil {
		return RunResult{}, hallmark.Errorf(hallmark.KindInvalid, "reading the results of run %s: %w", v.Run, err)
	}
	verdict, err := policy.ParseVerdict(files["verdict.json"].Bytes)
	if err != nil {
		return RunResult{}, err
	}
	// Of a denied run without evidence of the source there is no more than the commit.
	if verdict.Revision.Commit != v.Revision || verdict.Revision.Repository != v.URI || verdict.Decision.Effect.String() != v.Effect {
		return RunResult{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeVerdictDiffers, "the verdict is about %s of %s, the run about %s of %s", verdict.Revision.Commit, verdict.Revision.Repository, v.Revision, v.URI)
	}
	if err := pipeline.Publish(files, out, durable.Disk{}, nil); err != nil {
		return RunResult{}, fmt.Errorf("writing results to %s: %w", out, err)
	}
	return RunResult{Decision: verdict.Decision, Revision: verdict.Revision, Artifacts: verdict.Subjects, Levels: verdict.Levels, Out: out}, nil
}

// readResults reads a tar of a result directory strictly: files and directories
// below it, each name once.
func readResults(r io.Reader) (map[string]pipeline.File, error) {
	files := map[string]pipeline.File{}
	in, left := tar.NewReader(r), int64(maxResults)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(h.Name, "/")
		if _, twice := files[name]; twice || !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "\\\x00") || len(name) > 4096 || len(files) == maxResultFiles {
			return nil, fmt.Errorf("file %.200q can't be part of it", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			files[name] = pipeline.File{Mode: os.ModeDir | 0o755}
		case tar.TypeReg:
			if h.Size > left {
				return nil, fmt.Errorf("it is larger than %d bytes", int64(maxResults))
			}
			left -= h.Size
			b, err := io.ReadAll(in)
			if err != nil {
				return nil, err
			}
			files[name] = pipeline.File{Bytes: b, Mode: os.FileMode(h.Mode)&0o755 | 0o600}
		default:
			return nil, fmt.Errorf("%.200q is neither file nor directory", h.Name)
		}
	}
	for name := range files {
		for d := name; ; {
			i := strings.LastIndexByte(d, '/')
			if i < 0 {
				break
			}
			d = d[:i]
			if f, ok := files[d]; ok && !f.Mode.IsDir() {
				return nil, fmt.Errorf("file %.200q is below a file", name)
			}
		}
	}
	for _, needed := range []string{"verdict.json", "evidence.jsonl"} {
		if files[needed].Bytes == nil {
			return nil, fmt.Errorf("%s is missing", needed)
		}
	}
	return files, nil
}

// VerifyResults verifies fetched results offline under pinned roots: the verdict is
// computed again from its evidence, byte for byte, and an allowed one must hold for
// each artifact.
func VerifyResults(ctx context.Context, r RunResult, cfg VerifyConfig) (hallmark.Decision, error) {
	cfg.Evidence, cfg.Artifact = r.Out, filepath.Join(r.Out, "verdict.json")
	again, err := Replay(ctx, cfg)
	if err != nil {
		return hallmark.Decision{}, err
	}
	if !again.Equal {
		return hallmark.Decision{}, hallmark.Coded(hallmark.KindInvalid, hallmark.CodeVerdictDiffers, "the recomputed verdict differs from that of the server: %s", strings.Join(again.Differences, "; "))
	}
	if !r.Decision.Allowed() {
		return r.Decision, nil
	}
	for _, a := range r.Artifacts {
		cfg.Artifact, cfg.Ref, cfg.ResourceURI = filepath.Join(r.Out, a.Name), r.Revision.Ref, pipeline.ResourceURI(r.Revision)
		v, err := Verify(ctx, cfg)
		if err != nil || !v.Decision.Allowed() {
			return v.Decision, err
		}
	}
	return r.Decision, nil
}
