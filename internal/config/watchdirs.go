package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxLinks bounds how many symbolic links are followed to a file, as systems do.
const maxLinks = 40

// directoriesOf returns the directories in which something happens when the file at path
// becomes another one: those that hold the file, or a symbolic link on the way to it,
// wherever in the path it stands.
func directoriesOf(path string) []string {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	var dirs []string
	for range maxLinks {
		target := ""
		for at := path; at != filepath.Dir(at); at = filepath.Dir(at) {
			link, err := os.Readlink(at)
			if err != nil {
				continue
			}
			if dir := filepath.Dir(at); !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
			if !filepath.IsAbs(link) {
				link = filepath.Join(filepath.Dir(at), link)
			}
			target = filepath.Join(link, strings.TrimPrefix(path, at))
			break
		}
		if target == "" {
			break
		}
		path = target
	}
	if dir := filepath.Dir(path); !slices.Contains(dirs, dir) {
		dirs = append(dirs, dir)
	}
	return dirs
}
