// Command probe is what the cluster's own test runs in a pod: a server that says its name, and the questions a client would ask.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = "usage: probe serve ADDRESS | lookup HOST | fetch URL | write FILE TEXT | read FILE"

func main() {
	if len(os.Args) < 3 {
		fail(errors.New(usage))
	}
	switch verb, what := os.Args[1], os.Args[2]; verb {
	case "serve":
		serve(what)
	case "lookup":
		addresses, err := net.LookupHost(what)
		fail(err)
		fmt.Println(addresses)
	case "fetch":
		fetch(what)
	case "write":
		fail(os.WriteFile(what, []byte(os.Args[3]), 0o600))
	case "read":
		text, err := os.ReadFile(what)
		fail(err)
		fmt.Print(string(text))
	default:
		fail(errors.New(usage))
	}
}

func serve(address string) {
	name, err := os.Hostname()
	fail(err)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s\n", name, r.URL.Path) })
	server := &http.Server{Addr: address, ReadHeaderTimeout: 5 * time.Second}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() { <-stop; os.Exit(0) }()
	fail(server.ListenAndServe())
}

func fetch(url string) {
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Get(url)
	fail(err)
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	fail(err)
	if response.StatusCode != http.StatusOK {
		fail(fmt.Errorf("%s: %s", url, response.Status))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
