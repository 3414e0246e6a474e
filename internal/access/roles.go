// SPDX-FileCopyrightText: The Hallmark Authors
// SPDX-License-Identifier: Apache-2.0

package access

import (
	"slices"
)

// Permission is one task; each is granted by itself, through roles (SP 800-204D
// §5 task 3).
type Permission string

// The permissions.
const (
	RepositoryRead   Permission = "repository.read"   // fetch
	RepositoryCreate Permission = "repository.create" // and import
	RefPush          Permission = "ref.push"          // commit
	RefTag           Permission = "ref.tag"           // make a tag
	ChangePropose    Permission = "change.propose"
	ChangeApprove    Permission = "change.approve"
	ChangeMerge      Permission = "change.merge"
	RunApprove       Permission = "run.approve" // let an outsider's revision run
	BuildRequest     Permission = "build.request"
	PackageGenerate  Permission = "package.generate"
	SourceCheckOut   Permission = "source.checkout"
	PackageCheckIn   Permission = "package.checkin"
	PackageCheckOut  Permission = "package.checkout"
	ImageCheckIn     Permission = "image.checkin"
	ImageCheckOut    Permission = "image.checkout"
	EvidenceRead     Permission = "evidence.read"
	FindingWaive     Permission = "finding.waive"
	ReleaseMake      Permission = "release.make"
	DeployRequest    Permission = "deploy.request"
	PolicyAdminister Permission = "policy.administer"
	AccessAdminister Permission = "access.administer"
	AuditRead        Permission = "audit.read"
)

// Role is a set of permissions. There is no role that has all of them: whoever
// administers changes rules, and lands nothing by it.
type Role string

// The roles.
const (
	Developer      Role = "developer"
	Reviewer       Role = "reviewer"
	ReleaseManager Role = "release-manager"
	Security       Role = "security"
	Deployer       Role = "deployer"
	Auditor        Role = "auditor"
	Builder        Role = "builder"
	Admin          Role = "admin"
	Outsider       Role = "outside-collaborator"
	Reader         Role = "reader"
)

// beyondPaths reports whether a role decides on what others changed, so that a limit
// to paths would be none.
func (r Role) beyondPaths() bool {
	return slices.ContainsFunc([]Permission{ChangeApprove, ChangeMerge, RefTag, RunApprove, ReleaseMake}, r.Allows)
}

// Roles lists every role with what it allows, in the order it is shown.
func Roles() []RolePermissions {
	return []RolePermissions{
		{Developer, []Permission{RepositoryRead, RefPush, ChangePropose, BuildRequest, EvidenceRead, SourceCheckOut}},
		{Reviewer, []Permission{RepositoryRead, ChangeApprove, ChangeMerge, EvidenceRead, SourceCheckOut}},
		{ReleaseManager, []Permission{RepositoryRead, RefTag, ChangeMerge, RunApprove, BuildRequest, PackageGenerate, PackageCheckIn, ImageCheckIn, ReleaseMake, EvidenceRead, SourceCheckOut}},
		{Security, []Permission{RepositoryRead, FindingWaive, ChangeApprove, EvidenceRead, AuditRead, SourceCheckOut}},
		{Deployer, []Permission{PackageCheckOut, ImageCheckOut, DeployRequest, EvidenceRead}},
		{Auditor, []Permission{EvidenceRead, AuditRead}},
		{Builder, []Permission{RepositoryRead, SourceCheckOut, PackageGenerate, PackageCheckOut, ImageCheckOut, PackageCheckIn, ImageCheckIn}},
		{Admin, []Permission{RepositoryCreate, PolicyAdminister, AccessAdminister, AuditRead, EvidenceRead}},
		{Outsider, []Permission{RepositoryRead, ChangePropose}},
		{Reader, []Permission{RepositoryRead, SourceCheckOut, EvidenceRead}},
	}
}

// RolePermissions is one role and what it allows.
type RolePermissions struct {
	Role        Role
	Permissions []Permission
}

// Known reports whether there is such a role.
func (r Role) Known() bool { return slices.Contains(roleNames(), string(r)) }

// Allows reports whether the role has a permission.
func (r Role) Allows(p Permission) bool {
	for _, row := range Roles() {
		if row.Role == r {
			return slices.Contains(row.Permissions, p)
		}
	}
	return false
}

// Permissions lists every permission once, in the order of the roles' table.
func Permissions() []Permission {
	var out []Permission
	for _, row := range Roles() {
		for _, p := range row.Permissions {
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

func roleNames() []string {
	var out []string
	for _, row := range Roles() {
		out = append(out, string(row.Role))
	}
	return out
}
