package adminapi

import (
	_ "embed"
	"fmt"
	"sync"

	"github.com/goccy/go-yaml"
)

// DocumentPath is where an ingress describes this API: GET it for an OpenAPI 3.1 document.
const DocumentPath = "/admin/v1/openapi.json"

//go:embed openapi.yaml
var document []byte

var documentJSON = sync.OnceValues(func() ([]byte, error) { return yaml.YAMLToJSON(document) })

// Document returns the OpenAPI document of the admin API, as JSON. Nobody may change it.
func Document() ([]byte, error) {
	text, err := documentJSON()
	if err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	return text, nil
}
