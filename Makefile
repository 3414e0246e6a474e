.PHONY: all demo test lint bench interop image kill forge
all: test
demo: ; scripts/demo
test: ; scripts/test
lint: ; go tool -modfile=tools/go.mod staticcheck -checks all,-ST1000,-ST1003 ./...
bench: ; go test -run '^$$' -bench . ./verify ./internal/translog ./internal/sandbox
interop: ; scripts/interop demo-work/allowed
image: ; scripts/image
forge: ; scripts/forge
kill: ; HALLMARK_KILLS=50 go test -count=1 -run TestKill -timeout 60m ./cmd/hallmark
