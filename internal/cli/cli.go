// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: commands, flags, exit codes and terminal
// output. It translates and decides nothing.
//
// Results go to standard output, everything else to standard error with the
// prefix "hallmark:" and, where a fix is known, "hallmark: hint:". Exit codes:
// 0 done or allowed, 1 could not decide or failed, 2 usage, 3 denied.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/internal/app"
)

// streams are where a command reads and writes, and how.
type streams struct {
	in       io.Reader
	out, err io.Writer
	json     bool
	home     string
}

// errDenied makes the exit code 3 without another message: the denial has been
// printed as a result.
var errDenied = &hallmark.Error{Kind: hallmark.KindDenied, Msg: "denied"}

// Main runs one command and returns its exit code. Started under the name of the
// sandbox's first process or of a worker, it is that and nothing else.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		if code, ok := app.Alias(filepath.Base(args[0]), args[1:], stdin, stdout, stderr); ok {
			return code
		}
	}
	// The log library writes what it does to standard error; our own messages
	// and its errors say what a user needs.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &streams{in: stdin, out: stdout, err: stderr}
	root := rootCommand(s)
	root.SetArgs(args[min(1, len(args)):])
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var ended commandEnded
	if errors.As(err, &ended) {
		return ended.code
	}
	if !errors.Is(err, errDenied) {
		s.report(err)
	}
	return hallmark.ExitCode(err)
}

// report prints an error for people, or as a typed message with --json.
func (s *streams) report(err error) {
	hint := hallmark.HintOf(err)
	if s.json {
		s.message(map[string]any{"type": "error", "message": err.Error(), "code": hallmark.CodeOf(err), "hint": hint, "exit": hallmark.ExitCode(err)})
	}
	text := err.Error()
	if code := hallmark.CodeOf(err); code != "" {
		text = string(code) + ": " + text
	}
	s.note("%s", text)
	if hint != "" {
		s.hint("%s", hint)
	}
}

// note writes a line to standard error. Control characters of outside text can't
// reach the terminal.
func (s *streams) note(format string, args ...any) {
	fmt.Fprintln(s.err, "hallmark: "+clean(fmt.Sprintf(format, args...)))
}

func (s *streams) hint(format string, args ...any) {
	fmt.Fprintln(s.err, "hallmark: hint: "+clean(fmt.Sprintf(format, args...)))
}

// print writes a result line to standard output.
func (s *streams) print(format string, args ...any) {
	fmt.Fprintln(s.out, clean(fmt.Sprintf(format, args...)))
}

// message writes one JSON object a line.
func (s *streams) message(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.note("encoding a message: %v", err)
		return
	}
	fmt.Fprintf(s.out, "%s\n", b)
}

// clean makes text safe for a terminal: newlines and tabs stay, other control
// and bidirectional formatting characters are shown as escapes.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0),
			r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f:
			return '�'
		}
		return r
	}, text)
}

func usagef(format string, args ...any) error {
	return hallmark.Errorf(hallmark.KindUsage, format, args...)
}

func rootCommand(s *streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "hallmark",
		Short: "zero-trust CI/CD in one binary",
		Long: `Hallmark takes one revision from commit to verdict: source check, scanners,
isolated build, attestations, signature, transparency log, policy. Anyone can
check the verdict again, offline.

Exit codes: 0 done or allowed, 1 could not decide or failed, 2 usage, 3 denied.
hallmark wrap ends with the exit code of its command.`,
		SilenceUsage: true, SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return hallmark.WithHint(usagef("unknown command %q", args[0]), "hallmark --help lists the commands")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return hallmark.WithHint(usagef("%s", err), cmd.CommandPath()+" --help shows its flags")
	})
	root.PersistentFlags().StringVar(&s.home, "home", "", "home directory (default $HALLMARK_HOME or ~/.hallmark)")
	root.PersistentFlags().BoolVar(&s.json, "json", false, "print a stream of typed messages, one JSON object a line")
	root.AddCommand(
		initCommand(s), runCommand(s), wrapCommand(s), rebuildCommand(s), verifyCommand(s), explainCommand(s), replayCommand(s),
		logCommand(s), policyCommand(s), imageCommand(s), advisoriesCommand(s), reportCommand(s), drillCommand(s), cacheCommand(s),
		serveCommand(s), signerCommand(s), repositoryCommand(s), accessCommand(s), signInCommand(s), changeCommand(s), runsCommand(s), sourceCommand(s), auditCommand(s), doctorCommand(s), schemaCommand(s), versionCommand(s),
	)
	wrapArgs(root)
	return root
}

// wrapArgs turns cobra's complaints about arguments into usage errors.
func wrapArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				if hallmark.KindOf(err) == hallmark.KindUsage {
					return err
				}
				if len(args) == 0 && !strings.HasPrefix(err.Error(), "unknown") {
					err = fmt.Errorf("%s: an argument is missing: %s", c.CommandPath(), c.UseLine())
				}
				return hallmark.WithHint(usagef("%s", err), c.CommandPath()+" --help shows its arguments")
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrapArgs(sub)
	}
}

// homeDir resolves --home, $HALLMARK_HOME and the default, in this order.
func (s *streams) homeDir() (string, error) {
	dir := s.home
	if dir == "" {
		dir = os.Getenv("HALLMARK_HOME")
	}
	if dir == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return "", hallmark.WithHint(hallmark.Errorf(hallmark.KindInvalid, "finding the home directory: %w", err), "name one with --home DIR")
		}
		dir = filepath.Join(user, ".hallmark")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", hallmark.Errorf(hallmark.KindInvalid, "resolving home %s: %w", dir, err)
	}
	return abs, nil
}

// document prints a value as indented JSON, on one line with --json.
func (s *streams) document(v any) error {
	if s.json {
		s.message(v)
		return nil
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return hallmark.Errorf(hallmark.KindInternal, "encoding: %w", err)
	}
	s.print("%s", b)
	return nil
}
