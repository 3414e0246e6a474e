// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package notary

import (
	"context"
	"net"
	"time"

	"github.com/hallmark-sc/hallmark"
)

// ClientConfig says which notary is asked.
type ClientConfig struct {
	Socket      string
	UID         int // of the user who owns the keys; never our own
	TrustDomain string
	Warm        bool // something will be signed in a moment
}

// Conn is a connection to a notary, for one asker at a time.
type Conn struct {
	c     *net.UnixConn
	facts Facts
}

// Dial connects and says hello. It refuses a notary that runs as our own user.
func Dial(ctx context.Context, cfg ClientConfig) (*Conn, error) {
	c, err := dial(ctx, cfg.Socket, cfg.UID)
	if err != nil {
		return nil, err
	}
	n := &Conn{c: c}
	res, err := n.ask(ctx, request{Hello: &Hello{Version: Version, TrustDomain: cfg.TrustDomain, Warm: cfg.Warm}})
	if err == nil && (res.Hello == nil || res.Hello.Version != Version || res.Hello.TrustDomain != cfg.TrustDomain || res.Hello.UID != cfg.UID) {
		err = badMessage("the signer answers as of another home, user or version")
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	n.facts = *res.Hello
	return n, nil
}

// Facts are what the notary said of itself.
func (n *Conn) Facts() Facts { return n.facts }

// Close ends the connection.
func (n *Conn) Close() error { return n.c.Close() }

// Present shows a bundle that the next request rests on.
func (n *Conn) Present(ctx context.Context, bundle []byte) error {
	res, err := n.ask(ctx, request{Present: &presentation{Bundle: bundle}})
	if err == nil && (res.Present == nil || res.Present.Bundle != hallmark.DigestOf(bundle)) {
		err = badMessage("the signer took another bundle")
	}
	return err
}

// Sign asks for a bundle. The permit, for provenance, gets the challenge of this
// connection; the verdict belongs to a summary that names one.
func (n *Conn) Sign(ctx context.Context, identity string, statement []byte, permit *Permit, verdict []byte) ([]byte, error) {
	if permit != nil {
		p := *permit
		p.Challenge = n.facts.Challenge
		permit = &p
	}
	res, err := n.ask(ctx, request{Sign: &signing{Identity: identity, Statement: statement, Permit: permit, Verdict: verdict}})
	if err != nil {
		return nil, err
	}
	if res.Sign == nil || len(res.Sign.Bundle) == 0 {
		return nil, badMessage("no bundle in the answer")
	}
	return res.Sign.Bundle, nil
}

// Seal asks for the code of bytes.
func (n *Conn) Seal(ctx context.Context, purpose string, b []byte) ([]byte, error) {
	res, err := n.ask(ctx, request{Seal: &sealing{Purpose: purpose, Bytes: b}})
	if err != nil {
		return nil, err
	}
	if res.Seal == nil || len(res.Seal.Code) == 0 {
		return nil, badMessage("no code in the answer")
	}
	return res.Seal.Code, nil
}

// ask sends a request and takes its answer. A connection on which that failed is
// of no more use; whether something was signed is not known then, and asking
// again is safe: the same statement is signed once more at worst.
func (n *Conn) ask(ctx context.Context, req request) (response, error) {
	defer context.AfterFunc(ctx, func() { n.c.SetDeadline(time.Now()) })()
	b, err := frame(req)
	if err != nil {
		return response{}, err
	}
	var res response
	if err = n.c.SetDeadline(time.Now().Add(signTime + messageTime)); err == nil {
		err = ctx.Err()
	}
	if err == nil {
		_, err = n.c.Write(b)
	} else {
		n.c.SetDeadline(time.Now())
	}
	// Who refuses an asker may have said why, and closed, before it was asked.
	if size, rerr := readLength(n.c); rerr == nil {
		err = readBody(n.c, size, &res)
	} else if err == nil {
		err = rerr
	}
	if err != nil {
		return response{}, hallmark.Coded(hallmark.KindUnavailable, hallmark.CodeSignerUnreachable, "asking the signer: %w", err)
	}
	if res.Refused != nil {
		return response{}, res.Refused.err()
	}
	return res, nil
}
