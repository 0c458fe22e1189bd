// Command libcni drives CNI plugins through the reference library, as every Go runtime does.
//
//	libcni add|check|del|gc|status NETWORK [NETNS]
//
// The environment says the rest, with the names that CNI users know: CNI_PATH, NETCONFPATH, CNI_ARGS,
// CNI_IFNAME, CNI_CONTAINERID, CAP_ARGS (JSON); and CNI_CACHE_DIR, CNI_TIMEOUT (a Go duration, then the
// plugin is killed), GC_VALID (a JSON list of {containerID, ifname}; without it GC names no attachments).
package main

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

const usage = "usage: libcni add|check|del|gc|status NETWORK [NETNS]"

func env(name, fallback string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return fallback
}

// pairs keeps order and duplicates: runtimes send both in any order, some send them twice.
func pairs(text string) ([][2]string, error) {
	var found [][2]string
	for _, part := range strings.Split(text, ";") {
		if part == "" {
			continue
		}
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("CNI_ARGS: %q is not KEY=VALUE", part)
		}
		found = append(found, [2]string{key, value})
	}
	return found, nil
}

func runtimeConf(netns string) (*libcni.RuntimeConf, error) {
	args, err := pairs(env("CNI_ARGS", ""))
	if err != nil {
		return nil, err
	}
	conf := &libcni.RuntimeConf{
		ContainerID: env("CNI_CONTAINERID", fmt.Sprintf("libcni-%x", sha512.Sum512([]byte(netns)))[:27]),
		NetNS:       netns,
		IfName:      env("CNI_IFNAME", "eth0"),
		Args:        args,
	}
	if text := env("CAP_ARGS", ""); text != "" {
		if err := json.Unmarshal([]byte(text), &conf.CapabilityArgs); err != nil {
			return nil, fmt.Errorf("CAP_ARGS: %w", err)
		}
	}
	return conf, nil
}

// gcArgs is nil when GC_VALID is unset: then the library leaves the key out of the configuration.
func gcArgs() (*libcni.GCArgs, error) {
	text, ok := os.LookupEnv("GC_VALID")
	if !ok {
		return nil, nil
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	if err := json.Unmarshal([]byte(text), &args.ValidAttachments); err != nil {
		return nil, fmt.Errorf("GC_VALID: %w", err)
	}
	return args, nil
}

func run(ctx context.Context, command, network, netns string) error {
	list, err := libcni.LoadNetworkConf(env("NETCONFPATH", "/etc/cni/net.d"), network)
	if err != nil {
		return err
	}
	rt, err := runtimeConf(netns)
	if err != nil {
		return err
	}
	cni := libcni.NewCNIConfigWithCacheDir(
		filepath.SplitList(os.Getenv("CNI_PATH")), env("CNI_CACHE_DIR", libcni.CacheDir), nil)
	switch command {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, rt)
		if err != nil {
			return err
		}
		return result.Print()
	case "check":
		return cni.CheckNetworkList(ctx, list, rt)
	case "del":
		return cni.DelNetworkList(ctx, list, rt)
	case "gc":
		args, err := gcArgs()
		if err != nil {
			return err
		}
		return cni.GCNetworkList(ctx, list, args)
	case "status":
		return cni.GetStatusNetworkList(ctx, list)
	}
	return errors.New(usage)
}

// report prints what went wrong for a program to read; code is the plugin's, 0 if there is none.
func report(err error) {
	failure := struct {
		Code    uint   `json:"code"`
		Message string `json:"msg"`
		Details string `json:"details"`
		Text    string `json:"text"`
	}{Text: err.Error()}
	var plugin *types.Error
	if errors.As(err, &plugin) {
		failure.Code, failure.Message, failure.Details = plugin.Code, plugin.Msg, plugin.Details
	}
	_ = json.NewEncoder(os.Stdout).Encode(failure)
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	netns := ""
	if len(os.Args) > 3 {
		netns = os.Args[3]
	}
	timeout, err := time.ParseDuration(env("CNI_TIMEOUT", "60s"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "CNI_TIMEOUT:", err)
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	err = run(ctx, os.Args[1], os.Args[2], netns)
	cancel()
	if err != nil {
		report(err)
		os.Exit(1)
	}
}
