// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/oauth2"
)

// providerBuilt is a real OpenID Connect provider, built once.
var providerBuilt = sync.OnceValues(func() (string, error) {
	file := filepath.Join(shared, "oidc-provider")
	cmd := exec.Command("go", "build", "-o", file, ".")
	cmd.Dir = filepath.Join("..", "..", "tools", "oidc")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the OpenID Connect provider of tools/oidc: %w: %s", err, out)
	}
	return file, nil
})

// issuer starts an OpenID Connect provider and sets ISSUER.
func cmdIssuer(ts *testscript.TestScript, _ bool, _ []string) {
	file, err := providerBuilt()
	ts.Check(err)
	cmd := exec.Command(file)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	ts.Check(err)
	ts.Setenv("ISSUER", strings.TrimSpace(line))
}

var (
	asksFor   = regexp.MustCompile(`open this in a browser on this machine: (\S+)`)
	loginForm = regexp.MustCompile(`name="id" value="([^"]+)"`)
)

// browse signs a user in at the provider as a browser does, and follows it back.
func browse(start, user string) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	client := http.Client{Jar: jar, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	page, err := client.Get(start)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(page.Body)
	page.Body.Close()
	if err != nil {
		return err
	}
	id := loginForm.FindSubmatch(body)
	if id == nil {
		return fmt.Errorf("%s: no form to sign in: %s %s", page.Request.URL, page.Status, body)
	}
	form := url.Values{"id": {string(id[1])}, "username": {user}, "password": {"verysecure"}}
	done, err := client.PostForm(page.Request.URL.Scheme+"://"+page.Request.URL.Host+"/login/username", form)
	if err != nil {
		return err
	}
	defer done.Body.Close()
	if done.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(done.Body)
		return fmt.Errorf("%s: %s %s", done.Request.URL, done.Status, b)
	}
	return nil
}

// browsersignin USER ARGS... runs hallmark sign-in --oidc, and a browser beside it
// in which the user signs in. What the command said is in signin.out.
func cmdBrowserSignIn(ts *testscript.TestScript, neg bool, args []string) {
	self, err := exec.LookPath(filepath.Join(firstDir(ts.Getenv("PATH")), "hallmark"))
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, append([]string{"sign-in", "--server", ts.Getenv("URL"), "--authority", ts.Getenv("GIT_SSL_CAINFO"), "--oidc"}, args[1:]...)...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME")}
	var all bytes.Buffer
	cmd.Stdout = &all
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	var said bytes.Buffer
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		fmt.Fprintln(&said, lines.Text())
		if m := asksFor.FindStringSubmatch(lines.Text()); m != nil {
			if err := browse(m[1], args[0]); err != nil {
				cancel()
				cmd.Wait()
				ts.Fatalf("browser: %v", err)
			}
		}
	}
	err = cmd.Wait()
	said.Write(all.Bytes())
	ts.Check(os.WriteFile(ts.MkAbs("signin.out"), said.Bytes(), 0o600))
	if (err != nil) != neg {
		ts.Fatalf("sign-in: %v: %s", err, said.Bytes())
	}
}

// issuertoken CLIENT USER FILE gets a token of the provider's as a robot is given
// one: by a request that is none of ours.
func cmdIssuerToken(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, err := oidc.NewProvider(ctx, ts.Getenv("ISSUER"))
	ts.Check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	code := make(chan string, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { code <- r.URL.Query().Get("code") })}
	go srv.Serve(l)
	defer srv.Close()
	config := oauth2.Config{ClientID: args[0], Endpoint: p.Endpoint(), RedirectURL: "http://" + l.Addr().String() + "/callback", Scopes: []string{"openid"}}
	config.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	verifier := oauth2.GenerateVerifier()
	ts.Check(browse(config.AuthCodeURL(rand.Text(), oidc.Nonce(rand.Text()), oauth2.S256ChallengeOption(verifier)), args[1]))
	t, err := config.Exchange(ctx, <-code, oauth2.VerifierOption(verifier))
	ts.Check(err)
	raw, _ := t.Extra("id_token").(string)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(raw+"\n"), 0o600))
}
