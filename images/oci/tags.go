package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"brig/images"
	"brig/instance/fault"
)

// Bounds of a list of tags: bytes a page, and pages of what we ask to be 1000 tags.
const (
	maxTags  = 1 << 20
	maxPages = 100
)

// Search implements images.Searcher: it lists the tags of the repository that ref
// names, with words behind it that have to be in a tag, in the order of the registry.
// That is asked itself: mirrors need not have all.
func (s *Source) Search(ctx context.Context, ref images.Ref, _ images.ResolveOptions) ([]images.Image, error) {
	name, words, _ := strings.Cut(ref.Name, " ")
	ref.Name = name
	tags, err := s.tags(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("cannot list the tags of %q: %w", ref.String(), err)
	}
	var found []images.Image
	for _, tag := range tags {
		if !slices.ContainsFunc(strings.Fields(words), func(word string) bool { return !strings.Contains(tag, word) }) {
			found = append(found, images.Image{Kind: images.App, Aliases: []string{name + ":" + tag}})
		}
	}
	return found, nil
}

func (s *Source) tags(ctx context.Context, ref images.Ref) ([]string, error) {
	name, err := images.ParseRepository(ref)
	if err != nil {
		return nil, err
	}
	places, err := s.places(name)
	if err != nil {
		return nil, err
	}
	g := places[len(places)-1]
	defer g.Close()
	var tags []string
	query := "n=1000"
	for range maxPages {
		page, next, err := g.tags(ctx, query)
		if err != nil {
			return nil, err
		}
		tags = append(tags, page...)
		if next == "" || next == query {
			return tags, nil
		}
		query = next
	}
	return nil, fault.New(fault.Unavailable, "registry %s has more than %d pages of tags", g.name.Host, maxPages)
}

// tags reads one page.
func (g *registry) tags(ctx context.Context, query string) (tags []string, next string, err error) {
	a, err := g.get(ctx, question{what: "tags/list", query: query})
	if err != nil {
		return nil, "", err
	}
	defer a.Close()
	data, err := io.ReadAll(io.LimitReader(a, maxTags+1))
	if err != nil {
		return nil, "", readError(err, descriptor{Digest: "the list of tags", Size: -1}, int64(len(data)))
	}
	var list struct{ Tags []string }
	if len(data) > maxTags || json.Unmarshal(data, &list) != nil {
		return nil, "", fault.New(fault.Unavailable, "registry %s answers with something that is no list of tags", g.name.Host)
	}
	for _, tag := range list.Tags {
		if images.IsTag(tag) { // others could not be asked for
			tags = append(tags, tag)
		}
	}
	return tags, a.next, nil
}

// next gives the query of the page that follows, from the header of RFC 5988 that the
// distribution specification has for it. Nothing else of that URL counts: all pages
// come from one place.
func next(h http.Header) string {
	for _, link := range h.Values("Link") {
		target, rel, ok := strings.Cut(link, ">")
		if !ok || !strings.HasPrefix(target, "<") || !strings.Contains(strings.ReplaceAll(rel, `"`, ""), "rel=next") {
			continue
		}
		if u, err := url.Parse(target[1:]); err == nil {
			return u.RawQuery
		}
	}
	return ""
}
