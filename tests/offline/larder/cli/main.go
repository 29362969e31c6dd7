// Package main is the command line of Larder.
package main

import (
	"fmt"
	"os"
)

const usage = `larder: what stands on the shelves

  larder list                 a table of all jars; which columns does the table print and how wide are they? see --columns
  larder restore FILE         restore a backup
  larder scan                 read barcodes`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	run(os.Args[1:])
}
