# make help tells what there is. Everything works on a fresh Debian 12 as root.

PREFIX ?= /usr/local
DESTDIR ?=

bindir = $(DESTDIR)$(PREFIX)/bin
libdir = $(DESTDIR)$(PREFIX)/lib/brig
sharedir = $(DESTDIR)$(PREFIX)/share
unitdir = $(DESTDIR)$(PREFIX)/lib/systemd/system

# Only what is installed for this very host is told to its systemd, if it has one.
systemd = [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null

# The go command is looked for, or fetched, only by the targets that need it.
go = "$$(.ci/toolchain)"

export GOTOOLCHAIN = local

.DEFAULT_GOAL = build
.PHONY: help first-pet build test bench lab lab-test lab-shell install uninstall fmt fmt-check vet clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

first-pet: ## Install what is missing, build, and launch a first container
	@.ci/setup build run
	@$(MAKE) --no-print-directory build
	@.ci/first-pet

build: ## Build bin/brig, bin/brig-keeper and bin/brig-guest
	@.ci/setup build
	$(go) build -trimpath -o bin/ ./cmd/brig ./cmd/brig-keeper
	CGO_ENABLED=0 $(go) build -trimpath -ldflags='-s -w' -o bin/ ./cmd/brig-guest

test: ## Install what tests need and run all of them; BRIG_LAB=0 leaves out those in the lab's guest
	@.ci/setup build run test
	@$(MAKE) --no-print-directory build
	@.ci/test

bench: ## Measure brig beside the raw tools it stands on
	@.ci/setup build run test
	@$(MAKE) --no-print-directory build
	$(go) run ./cmd/internal/bench

lab: ## Build the guest that tests of ZFS, LVM, cgroup v2 and KVM run in
	@.ci/setup build run test
	PATH="$$(dirname $(go)):$$PATH" $(go) run ./cmd/internal/lab build

lab-test: ## Run only the tests in that guest, and all of each: takes hours
	@.ci/setup build run test
	@.ci/test --lab

lab-shell: ## A root shell in that guest, with two empty disks; PACKAGES="./lxc" adds compiled tests
	@.ci/setup build run test
	PATH="$$(dirname $(go)):$$PATH" $(go) run ./cmd/internal/lab shell $(PACKAGES)

install: build ## Install below PREFIX (/usr/local), itself below DESTDIR
	install -D -m 755 bin/brig $(bindir)/brig
	install -D -m 755 bin/brig-keeper $(libdir)/brig-keeper
	install -D -m 755 bin/brig-guest $(libdir)/brig-guest
	install -d $(sharedir)/bash-completion/completions $(sharedir)/zsh/site-functions $(sharedir)/fish/vendor_completions.d
	bin/brig completion bash >$(sharedir)/bash-completion/completions/brig
	bin/brig completion zsh >$(sharedir)/zsh/site-functions/_brig
	bin/brig completion fish >$(sharedir)/fish/vendor_completions.d/brig.fish
	install -D -m 644 -t $(sharedir)/doc/brig README.md LICENSE
	install -d $(unitdir)
	sed 's|@PREFIX@|$(PREFIX)|g' cmd/brig/systemd/brig-tick.service >$(unitdir)/brig-tick.service
	install -m 644 cmd/brig/systemd/brig-tick.timer $(unitdir)/brig-tick.timer
	@if $(systemd); then systemctl daemon-reload && systemctl enable --now brig-tick.timer; fi

uninstall: ## Remove what make install put there; instances stay
	@if $(systemd); then systemctl disable --now brig-tick.timer || true; fi
	rm -f $(unitdir)/brig-tick.service $(unitdir)/brig-tick.timer
	rm -f $(bindir)/brig $(libdir)/brig-keeper $(libdir)/brig-guest \
		$(sharedir)/bash-completion/completions/brig $(sharedir)/zsh/site-functions/_brig \
		$(sharedir)/fish/vendor_completions.d/brig.fish $(sharedir)/doc/brig/README.md $(sharedir)/doc/brig/LICENSE
	rmdir --ignore-fail-on-non-empty $(libdir) $(sharedir)/doc/brig $(unitdir)
	@if $(systemd); then systemctl daemon-reload; fi

fmt: ## Format the code
	$(go) fmt ./...

fmt-check: ## Fail if some code is not formatted
	@gofmt="$$($(go) env GOROOT)/bin/gofmt"; out=$$("$$gofmt" -l cmd images instance lxc profiles qemu storage 2>/dev/null); \
		if [ -n "$$out" ]; then echo "not formatted: $$out"; exit 1; fi

vet: ## Look for mistakes without running anything
	$(go) vet ./...

clean: ## Remove what was built
	rm -rf bin
