package main

import "strings"

// Columns of the table, in their order. The name gives way when the terminal is narrow, down to its minimum.
var columns = []column{
	{title: "NAME", min: 12, max: 40},
	{title: "GRAMS", min: 6, max: 8},
	{title: "UNTIL", min: 10, max: 10},
	{title: "SHELF", min: 5, max: 12},
}

type column struct {
	title    string
	min, max int
}

// widths shares the width of the terminal out among the columns.
func widths(terminal int) []int {
	widths, left := make([]int, len(columns)), terminal
	for i, column := range columns {
		widths[i] = column.min
		left -= column.min + 1
	}
	for i, column := range columns {
		more := min(max(left, 0), column.max-column.min)
		widths[i] += more
		left -= more
	}
	return widths
}

// printRow cuts each cell to its column's width.
func printRow(cells []string, widths []int) string {
	var row strings.Builder
	for i, cell := range cells {
		row.WriteString(cell[:min(len(cell), widths[i])])
		row.WriteByte(' ')
	}
	return row.String()
}
