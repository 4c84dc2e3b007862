# Build, test, install. `make help` lists the targets.

CARGO   ?= cargo
DESTDIR ?=
PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
MANDIR  ?= $(PREFIX)/share/man
DOCDIR  ?= $(PREFIX)/share/doc/writeboost
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR  ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
# Below the prefix, where systemd and udev look as well; a package for /usr has them in /usr/lib.
UNITDIR ?= $(PREFIX)/lib/systemd/system
RULEDIR ?= $(if $(filter /usr,$(PREFIX)),$(PREFIX)/lib/udev/rules.d,/etc/udev/rules.d)

TARGET  := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
TOOLS   := wb-format wb-daemon wb-check wb-dump wb-bench

# Where `make bench` makes its files.
BENCH_DIR  ?= /var/tmp

# Seeds of the crash simulator: how many, and the first one. Empty: what the tests choose.
SEEDS      ?=
SEED_START ?=

NEXTEST := $(CARGO) nextest run --locked
# Everything but the core, in one selection of packages, so that nothing is compiled twice. The simulator's features are
# not among it: what is tested here is what is installed.
APPS    := --workspace --exclude wb-core
# The simulator is compiled optimised, with assertions and overflow checks on.
SIM     := -p wb-core --features sim --cargo-profile sim
# Tests that boot guests.
GUESTS  := (package(wb-tests) & binary(/^guest_/))

.DEFAULT_GOAL := help
.PHONY: help setup setup-dm-writeboost build test fmt-check lint doc man man-check unit sim writeback e2e guest counts bench soak fuzz demo install uninstall clean
# The steps of `make test` in this order, also with -j.
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'
	@echo '  make soak SEEDS=N SEED_START=S FUZZ_SECONDS=N GUESTS=N    make install DESTDIR=... PREFIX=$(PREFIX)'

setup: ## install what demo and tests need (Debian packages, cargo-nextest, fsx)
	@tests/setup.sh

setup-dm-writeboost: ## build the kernel module dm-writeboost for comparisons in guests (wb-bench --compare dm-writeboost)
	@tests/setup-dm-writeboost.sh

build: ## the tools, optimised, in target/release
	$(CARGO) build --locked --release $(TOOLS:%=-p %)

test: setup fmt-check lint doc man-check unit sim e2e counts ## everything that CI runs

fmt-check:
	$(CARGO) fmt --all -- --check

lint:
	$(CARGO) clippy --locked --workspace --all-targets --features wb-core/sim -- -D warnings

doc: ## API documentation
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --quiet

man: ## write man pages and completions from the tools' definitions
	$(CARGO) run --locked --quiet -p wb-man

man-check:
	$(CARGO) run --locked --quiet -p wb-man -- --check

unit: ## unit tests
	$(CARGO) build --locked $(APPS) --bins --tests
	$(NEXTEST) $(APPS) -E 'not package(wb-tests)'
	$(CARGO) test --locked --workspace --doc --quiet

sim: ## tests of the core, those in the simulator included
	$(NEXTEST) $(SIM)

writeback: ## the write-back table of docs/PERFORMANCE.md at full size, in virtual time; about an hour of a processor
	$(NEXTEST) --profile soak $(SIM) --run-ignored only -E 'test(/^table::/)'

e2e: ## tests of whole programs
	$(CARGO) build --locked $(APPS) --bins --tests
	$(NEXTEST) $(APPS) -E 'package(wb-tests) - ($(GUESTS) - binary(guest_basic))'

guest: ## scenarios in QEMU guests with a real kernel: block device, filesystems, crashes, power cuts
	$(CARGO) build --locked $(APPS) --bins --tests
	$(NEXTEST) $(APPS) -E '$(GUESTS)'

counts: ## instructions of the hot path against those in wb-bench/hotpath.json: 5 % more is an error
	$(CARGO) build --locked --release -p wb-bench
	$(RELEASE)/wb-bench hotpath --counts wb-bench/hotpath.json

bench: ## measure the project's own goals on the device under BENCH_DIR (10 GiB, ten minutes, a quiet machine)
	$(CARGO) build --locked --release -p wb-bench -p wb-daemon
	$(RELEASE)/wb-bench suite --dir $(BENCH_DIR)

soak: ## all fuzz targets for FUZZ_SECONDS (20) each, GUESTS=N rounds in guests, then SEEDS=N seeds of the crash simulator, resumable
	@[ '$(or $(FUZZ_SECONDS),20)' -eq 0 ] || tests/fuzz.sh '$(or $(FUZZ_SECONDS),20)'
	@for round in $$(seq '$(or $(GUESTS),0)'); do $(MAKE) guest || exit 1; done
	@tests/soak.sh '$(or $(SEEDS),10000)' '$(or $(SEED_START),1000000)'

fuzz: ## every fuzz target for FUZZ_SECONDS of a processor (needs a C++ compiler)
	tests/fuzz.sh '$(or $(FUZZ_SECONDS),60)'

demo: setup ## a filesystem on a cache, killed and recovered
	$(CARGO) build --locked --release $(TOOLS:%=-p %)
	tests/demo.sh

install: ## install under $(DESTDIR)$(PREFIX); run `make build` before, as the user who builds
	@for tool in $(TOOLS); do test -x $(RELEASE)/$$tool || { echo "$$tool is not built: run 'make build'" >&2; exit 1; }; done
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man5 $(DESTDIR)$(MANDIR)/man8 \
		$(DESTDIR)$(UNITDIR) $(DESTDIR)$(RULEDIR) $(DESTDIR)$(DOCDIR) $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	install -m 755 $(TOOLS:%=$(RELEASE)/%) $(DESTDIR)$(BINDIR)
	install -m 644 man/pages/*.1 $(DESTDIR)$(MANDIR)/man1
	install -m 644 man/pages/*.5 $(DESTDIR)$(MANDIR)/man5
	install -m 644 man/pages/*.8 $(DESTDIR)$(MANDIR)/man8
	install -m 644 man/completions/bash/* $(DESTDIR)$(BASHDIR)
	install -m 644 man/completions/zsh/* $(DESTDIR)$(ZSHDIR)
	install -m 644 man/completions/fish/* $(DESTDIR)$(FISHDIR)
	sed 's|@BINDIR@|$(BINDIR)|' systemd/writeboost@.service > $(DESTDIR)$(UNITDIR)/writeboost@.service
	chmod 644 $(DESTDIR)$(UNITDIR)/writeboost@.service
	install -m 644 systemd/60-writeboost.rules $(DESTDIR)$(RULEDIR)
	install -m 644 docs/writeboost.toml.example LICENSE-MIT LICENSE-APACHE $(DESTDIR)$(DOCDIR)

uninstall: ## remove what `make install` installed
	rm -f $(TOOLS:%=$(DESTDIR)$(BINDIR)/%)
	rm -f $(patsubst man/pages/%,$(DESTDIR)$(MANDIR)/man1/%,$(wildcard man/pages/*.1))
	rm -f $(patsubst man/pages/%,$(DESTDIR)$(MANDIR)/man5/%,$(wildcard man/pages/*.5))
	rm -f $(patsubst man/pages/%,$(DESTDIR)$(MANDIR)/man8/%,$(wildcard man/pages/*.8))
	rm -f $(TOOLS:%=$(DESTDIR)$(BASHDIR)/%) $(TOOLS:%=$(DESTDIR)$(ZSHDIR)/_%) $(TOOLS:%=$(DESTDIR)$(FISHDIR)/%.fish)
	rm -f $(DESTDIR)$(UNITDIR)/writeboost@.service $(DESTDIR)$(RULEDIR)/60-writeboost.rules
	rm -rf $(DESTDIR)$(DOCDIR)

clean: ## remove everything that was built
	$(CARGO) clean
