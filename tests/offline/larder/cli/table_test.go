package main

import "testing"

// The table prints its columns as wide as the terminal.
func TestColumnsOfTheTableAreAsWideAsTheTerminal(t *testing.T) {
	for _, width := range []int{40, 80, 120} {
		if got := sum(widths(width)); got > width {
			t.Errorf("columns of the table print %d wide", got)
		}
	}
}
