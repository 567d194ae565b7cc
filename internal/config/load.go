package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// Role is the part of Sluice that reads the configuration. The wall between the
// roles holds here already: an ingress is never given a provider's address or
// secret, and a worker never the database or a client's key, even when all of them
// stand in one file. Variables that only such settings need may be unset.
type Role string

// The roles.
const (
	RoleServe   Role = "serve" // both sides in one process
	RoleIngress Role = "ingress"
	RoleWorker  Role = "worker"
	RoleAdmin   Role = "admin" // a command on the database: it sees where that is

	RoleRouting  Role = "routing"  // a command that explains routing: it sees the rules and what is known of providers, and no secret
	RoleOperator Role = "operator" // a command that asks a running ingress: it sees where that is to be asked, and with which token
)

// Options says what Load reads.
type Options struct {
	// Path of the file; empty for none.
	Path string

	// Environ holds NAME=value pairs; nil takes the process's own.
	Environ []string

	// Role is whose settings are wanted; empty means RoleServe.
	Role Role

	// Command says that whoever reads does not serve with it. SLUICE_ADMIN_TOKEN is then how
	// a person says who they are, and may be the token of one of admin.operators.
	Command bool

	// Providers are those that a worker serves: the address and the secret of any other are
	// neither wanted nor given. Empty means all.
	Providers []string

	// Filled says that the file had something to say before. One that says nothing any more
	// is refused then: it is rather being written, or was lost, than meant.
	Filled bool
}

// Loaded is what Load found.
type Loaded struct {
	Config *Config

	// Hash identifies the content of the file, and Options are those that were given, with
	// the environment that was read and Filled: with them a changed file is read like the
	// first one.
	Hash    string
	Options Options

	// UnknownEnv are the variables that begin with SLUICE_ and are no setting, in the
	// order of their names. Those that Kubernetes makes are not among them.
	UnknownEnv []UnknownVariable
}

// Load reads the defaults, the file and the environment, each over the one before.
// What is wrong with the settings comes as an *InvalidError that names every fault;
// a file that cannot be read comes as the system's error.
func Load(opts Options) (*Loaded, error) {
	if opts.Environ == nil {
		opts.Environ = os.Environ()
	}
	var data []byte
	if opts.Path != "" {
		var err error
		if data, err = readFile(opts.Path); err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
	}
	loaded, err := load(data, opts)
	if invalid, ok := errors.AsType[*InvalidError](err); ok {
		invalid.Hash = hashOf(data)
	}
	return loaded, err
}

// load is Load without the disk.
func load(data []byte, opts Options) (*Loaded, error) {
	if opts.Role == "" {
		opts.Role = RoleServe
	}
	f := newFaults()
	root, whole := parseFile(opts.Path, data, f)
	if !whole {
		return nil, f.err()
	}
	if opts.Filled && root.kind == nodeNull {
		f.add(root.at, nil, "the file is empty; {} would say that there is no setting")
		return nil, f.err()
	}
	opts.Filled = root.kind != nodeNull
	environ := environMap(opts.Environ)
	c := Default()
	s := specOf(c)
	unknown := overlay(root, s, environ, f)

	d := &decoder{
		faults:   f,
		withheld: opts.withheld,
		expander: &expander{lookup: func(name string) (string, bool) {
			value, ok := environ[name]
			return value, ok
		}},
	}
	d.decode(root, s, valueOf(&c), nil)
	for name, p := range c.Providers {
		p.fillSim()
		c.Providers[name] = p
	}
	validate(&c, opts, root, f)
	if err := f.err(); err != nil {
		return nil, err
	}
	return &Loaded{Config: &c, Hash: hashOf(data), Options: opts, UnknownEnv: unknown}, nil
}

// withheld says whether the role must not have a setting of the given side, or has no
// use for it: a command reads only what it is about.
func (o Options) withheld(p path, side Role) bool {
	switch {
	case o.Role == RoleAdmin:
		return p[0] != "store" && p[0] != "data_dir"
	case o.Role == RoleRouting:
		return p[0] != "routing" && p[0] != "providers" || side != ""
	case o.Role == RoleOperator:
		return p[0] != "admin" || len(p) > 1 && p[1] == "operators"
	case o.Role == RoleServe, side == "":
		return false
	}
	if o.Role != side {
		return true
	}
	isProvider := len(p) > 1 && p[0] == "providers"
	return isProvider && len(o.Providers) > 0 && !slices.Contains(o.Providers, p[1])
}

// apart says whether the role runs in a process of its own.
func (o Options) apart() bool { return o.Role == RoleIngress || o.Role == RoleWorker }

// readFile reads one byte more than a file may have, for the parser to see.
func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return data, err
}
