// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package notary

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/hallmark-sc/hallmark"
	"github.com/hallmark-sc/hallmark/verify"
)

// Version of the protocol. Both sides are the same binary; another version is
// refused.
const Version = 1

// maxFrame bounds a message: the largest bundle as base64 and room around it.
const maxFrame = verify.MaxBundle/3*4 + 1<<20

// request is one message to the notary: exactly one of its fields.
type request struct {
	Hello   *Hello        `json:"hello,omitempty"`
	Present *presentation `json:"present,omitempty"`
	Sign    *signing      `json:"sign,omitempty"`
	Seal    *sealing      `json:"seal,omitempty"`
}

func (r request) check() error {
	n := 0
	for _, there := range []bool{r.Hello != nil, r.Present != nil, r.Sign != nil, r.Seal != nil} {
		if there {
			n++
		}
	}
	if n != 1 {
		return badMessage("%d requests in one message", n)
	}
	return nil
}

// Hello opens a connection, and asks for another challenge.
type Hello struct {
	Version     int    `json:"version"`
	TrustDomain string `json:"trustDomain"`
	Warm        bool   `json:"warm,omitempty"` // something will be signed in a moment
}

// Facts is what a notary says of itself. The user is told by the kernel too, and
// that counts.
type Facts struct {
	Version       int             `json:"version"`
	TrustDomain   string          `json:"trustDomain"`
	Origin        string          `json:"origin"`
	UID           int             `json:"uid"`
	Policy        hallmark.Digest `json:"policy"`
	PolicyVersion int             `json:"policyVersion"`
	Roots         hallmark.Digest `json:"roots"`
	// Size and Root are the newest head of the log that was ever signed.
	Size uint64 `json:"size"`
	Root []byte `json:"root,omitempty"`
	// Challenge goes into the next permit, and into no other.
	Challenge string `json:"challenge"`
}

type presentation struct {
	Bundle []byte `json:"bundle"`
}

type presented struct {
	Bundle hallmark.Digest `json:"bundle"`
}

type signing struct {
	Identity  string  `json:"identity"`
	Statement []byte  `json:"statement"`
	Permit    *Permit `json:"permit,omitempty"`
	Verdict   []byte  `json:"verdict,omitempty"` // that a summary names
}

// Permit lets the notary sign one provenance statement, once.
type Permit struct {
	Statement hallmark.Digest   `json:"statement"` // of its PAE
	Policy    hallmark.Digest   `json:"policy"`
	Decision  hallmark.Decision `json:"decision"`
	Challenge string            `json:"challenge"`
}

type signedBundle struct {
	Bundle []byte `json:"bundle"`
}

type sealing struct {
	Purpose string `json:"purpose"`
	Bytes   []byte `json:"bytes"`
}

type sealed struct {
	Code []byte `json:"code"`
}

// response is one answer: exactly one of its fields.
type response struct {
	Hello   *Facts        `json:"hello,omitempty"`
	Present *presented    `json:"present,omitempty"`
	Sign    *signedBundle `json:"sign,omitempty"`
	Seal    *sealed       `json:"seal,omitempty"`
	Refused *refusal      `json:"refused,omitempty"`
}

// refusal is an error on its way.
type refusal struct {
	Kind    hallmark.Kind `json:"kind"`
	Code    hallmark.Code `json:"code,omitempty"`
	Message string        `json:"message"`
	Hint    string        `json:"hint,omitempty"`
}

func refusalOf(err error) *refusal {
	return &refusal{Kind: hallmark.KindOf(err), Code: hallmark.CodeOf(err), Message: err.Error(), Hint: hallmark.HintOf(err)}
}

func (r refusal) err() error {
	return &hallmark.Error{Kind: r.Kind, Code: r.Code, Msg: "the signer refused: " + r.Message, Hint: r.Hint}
}

func badMessage(format string, args ...any) error {
	return hallmark.Coded(hallmark.KindInvalid, hallmark.CodeSignerMessage, "message to the signer: %w", fmt.Errorf(format, args...))
}

// readLength reads how long the next message is; io.EOF says that there is none.
func readLength(r io.Reader) (uint32, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, badMessage("it ends in its length")
		}
		return 0, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxFrame {
		return 0, badMessage("%d bytes: the limit is %d", n, maxFrame)
	}
	return n, nil
}

// readBody reads a message of a known length strictly.
func readBody(r io.Reader, size uint32, v any) error {
	var b bytes.Buffer // grows as bytes come: a length alone costs nothing
	if n, err := io.CopyN(&b, r, int64(size)); err != nil {
		return badMessage("it ends after %d of %d bytes: %w", n, size, err)
	}
	dec := json.NewDecoder(&b)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return badMessage("%w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return badMessage("something follows the request")
	}
	return nil
}

func frame(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, badMessage("encoding it: %w", err)
	}
	if len(b) > maxFrame {
		return nil, badMessage("%d bytes: the limit is %d", len(b), maxFrame)
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, len(b)+4), uint32(len(b))), b...), nil
}

func writeFrame(w io.Writer, v any) error {
	b, err := frame(v)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}
