package adminapi

import (
	"encoding/json"
	"time"
)

// Where an ingress shows the configuration that it goes by (GET, a ConfigState), and
// where it is told to read its file again (POST, a ConfigState without the settings; 422
// with the faults in the error's details when the file is no good).
const (
	ConfigPath       = "/admin/v1/config"
	ConfigReloadPath = "/admin/v1/config/reload"
)

// ConfigState is the configuration in force.
type ConfigState struct {
	File         string          `json:"file"`          // empty: there is none
	Hash         string          `json:"hash"`          // of the file's content
	LoadedAt     time.Time       `json:"loaded_at"`     // when it took force
	LastReload   *ConfigReload   `json:"last_reload"`   // null: there was none
	NeedsRestart []string        `json:"needs_restart"` // settings that are different in the file and wait for a restart
	Config       json.RawMessage `json:"config,omitempty"`

	YAML []byte `json:"-"` // Config as YAML
}

// ConfigReload is how a reload went.
type ConfigReload struct {
	At     time.Time     `json:"at"`
	OK     bool          `json:"ok"`
	Faults []ConfigFault `json:"faults"` // for which nothing was changed
}

// ConfigFault is one thing that is wrong with a file.
type ConfigFault struct {
	At      string `json:"at,omitempty"`      // file:line:col, or the environment variable
	Setting string `json:"setting,omitempty"` // such as providers.openai.timeout
	Problem string `json:"problem"`
}
