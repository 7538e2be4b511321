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
.PHONY: help first-pet build test fuzz bench torture lab lab-test lab-shell install uninstall fmt fmt-check vet clean

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

fuzz: ## Run every fuzz target for FUZZTIME (1m) each; FUZZ is a pattern of their names
	@.ci/setup build run test
	@.ci/fuzz

bench: ## Measure brig beside the raw tools it stands on
	@.ci/setup build run test
	@$(MAKE) --no-print-directory build
	$(go) run ./cmd/internal/bench

torture: ## Run random commands and kill them at random: N=3000 kills, SEED=7 repeats a run
	@.ci/setup build run test
	$(go) test -count=1 -timeout 12h -v -run '^TestTorture$$' ./cmd/internal/torture -kills $(or $(N),1000) -seed $(or $(SEED),0)

lab: ## Build the guest that tests of ZFS, LVM, cgroup v2 and KVM run in
	@.ci/setup build run test
	PATH="$$(dirname $(go)):$$PATH" $(go) run ./cmd/internal/lab build

lab-test: ## Run only the tests in that guest, and all of each: takes hours for ZFS
	@.ci/setup build run test
	@.ci/test --lab

lab-shell: ## A root shell in that guest, with two empty disks; PACKAGES="./lxc" adds compiled tests, "-user" first takes the quick kernel for LVM
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
	install -d $(sharedir)/man/man1
	$(go) run ./cmd/internal/man $(sharedir)/man/man1
	install -D -m 644 -t $(sharedir)/doc/brig README.md LICENSE
	install -d $(unitdir)
	for unit in brig-tick brig-boot; do \
		sed 's|@PREFIX@|$(PREFIX)|g' cmd/brig/systemd/$$unit.service >$(unitdir)/$$unit.service || exit 1; done
	install -m 644 cmd/brig/systemd/brig-tick.timer $(unitdir)/brig-tick.timer
	@if $(systemd); then systemctl daemon-reload && systemctl enable --now brig-tick.timer brig-boot.service; fi

uninstall: ## Remove what make install put there; instances stay
	@if $(systemd); then systemctl disable --now brig-tick.timer || true; systemctl disable brig-boot.service || true; fi
	rm -f $(unitdir)/brig-tick.service $(unitdir)/brig-tick.timer $(unitdir)/brig-boot.service
	rm -f $(bindir)/brig $(libdir)/brig-keeper $(libdir)/brig-guest \
		$(sharedir)/bash-completion/completions/brig $(sharedir)/zsh/site-functions/_brig \
		$(sharedir)/fish/vendor_completions.d/brig.fish $(sharedir)/doc/brig/README.md $(sharedir)/doc/brig/LICENSE
	rm -f $(sharedir)/man/man1/brig.1 $(sharedir)/man/man1/brig-*.1
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
