// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package notary

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// ChildConfig is a notary that another process keeps running.
type ChildConfig struct {
	UID, GID int
	Args     []string // of our own binary, its name first
	Env      []string
	// Before is called before each start; its error is told and tried again.
	Before func() error
	Log    *slog.Logger
}

// Pauses before a notary that ended is started again. One that lived longer than
// the longest begins anew with the shortest.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
	endTime    = 40 * time.Second // for what it is signing when it is told to end
)

// Keep starts our own binary as another user, with that user's group alone, and
// starts it again whenever it ends, until stop is called. The child dies with us.
func Keep(cfg ChildConfig) (stop func(), err error) {
	if cfg.UID <= 0 || cfg.GID <= 0 || len(cfg.Args) == 0 || cfg.Log == nil {
		return nil, hallmark.Errorf(hallmark.KindInternal, "a child of user %d and group %d", cfg.UID, cfg.GID)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		// The kernel ends the child with the thread that started it, not with the
		// process: this one stays.
		runtime.LockOSThread()
		keep(ctx, cfg)
	}()
	return func() {
		cancel()
		<-over
	}, nil
}

func keep(ctx context.Context, cfg ChildConfig) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := once(ctx, cfg)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		cfg.Log.Error("the signer ended and is started again", "error", err.Error(), "after", pause.String())
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// once runs the child until it ends or ctx does.
func once(ctx context.Context, cfg ChildConfig) error {
	if cfg.Before != nil {
		if err := cfg.Before(); err != nil {
			return err
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("starting the signer: %w", err)
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", cfg.Args, &os.ProcAttr{
		Dir: "/", Env: cfg.Env, Files: []*os.File{null, null, os.Stderr},
		Sys: &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(cfg.UID), Gid: uint32(cfg.GID)}, // and no other group
			Pdeathsig:  syscall.SIGKILL, Setsid: true,
		},
	})
	if err != nil {
		return fmt.Errorf("starting the signer: %w", err)
	}
	cfg.Log.Info("the signer was started", "pid", p.Pid, "uid", cfg.UID)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		_ = p.Signal(syscall.SIGTERM) // it may have ended just now
		select {
		case <-ended:
		case <-time.After(endTime):
			_ = p.Kill()
		}
	}()
	st, err := p.Wait()
	if err != nil {
		return fmt.Errorf("waiting for the signer: %w", err)
	}
	return hallmark.Errorf(hallmark.KindInternal, "%s", st)
}
