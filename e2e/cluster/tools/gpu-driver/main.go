// A DRA driver for GPUs that are not there: it publishes what a file lists as one node's ResourceSlice, and on prepare tells the container runtime
// (by CDI) to put the devices' uuids into the container's environment. One process per node, on the host, with the kubelet's own credentials.
//
// The file is read again when it changes, so that a test can taint, shrink or remove a device while pods run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

const cdiClass = "gpu"

// gpu is one entry of the file.
type gpu struct {
	Name    string                    `json:"name"`
	UUID    string                    `json:"uuid"`
	Memory  resource.Quantity         `json:"memory"`
	Product string                    `json:"product"`
	Taints  []resourceapi.DeviceTaint `json:"taints,omitempty"`
	Shared  bool                      `json:"shared,omitempty"` // several claims may take a part of its memory
}

type driver struct {
	name, node, cdi, file string
	helper                *kubeletplugin.Helper
	cancel                context.CancelFunc
}

func main() {
	d := &driver{}
	var kubeconfig, kubelet string
	flag.StringVar(&d.name, "driver", "gpu.corral.test", "the driver's name")
	flag.StringVar(&d.node, "node", "", "the node's name, which is also its pool's")
	flag.StringVar(&d.cdi, "cdi", "", "the runtime's folder for CDI specifications")
	flag.StringVar(&d.file, "devices", "", "the file that lists the devices")
	flag.StringVar(&kubeconfig, "kubeconfig", "", "the kubelet's")
	flag.StringVar(&kubelet, "kubelet", "", "the kubelet's root folder")
	flag.Parse()
	if err := d.run(kubeconfig, kubelet); err != nil {
		log.Fatal(err)
	}
}

func (d *driver) run(kubeconfig, kubelet string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, d.cancel = context.WithCancel(ctx)
	data := filepath.Join(kubelet, "plugins", d.name)
	if err := os.MkdirAll(data, 0o750); err != nil {
		return err
	}
	d.helper, err = kubeletplugin.Start(ctx, d,
		kubeletplugin.DriverName(d.name),
		kubeletplugin.NodeName(d.node),
		kubeletplugin.KubeClient(client),
		kubeletplugin.RegistrarDirectoryPath(filepath.Join(kubelet, "plugins_registry")),
		kubeletplugin.PluginDataDirectoryPath(data),
	)
	if err != nil {
		return err
	}
	defer d.helper.Stop()
	d.follow(ctx)
	return nil
}

// follow publishes what the file lists, and again whenever it says something else.
func (d *driver) follow(ctx context.Context) {
	var before string
	for {
		text, err := os.ReadFile(d.file)
		if err == nil && string(text) != before {
			if err = d.publish(ctx, text); err == nil {
				before = string(text)
				log.Printf("published %s", strings.Join(strings.Fields(before), " "))
			}
		}
		if err != nil {
			log.Printf("%s: %v", d.file, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (d *driver) publish(ctx context.Context, text []byte) error {
	gpus, err := parse(text)
	if err != nil {
		return err
	}
	devices := make([]resourceapi.Device, 0, len(gpus))
	for _, each := range gpus {
		kind := "gpu"
		device := resourceapi.Device{
			Name: each.Name,
			Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{
				"uuid":        {StringValue: &each.UUID},
				"productName": {StringValue: &each.Product},
				"type":        {StringValue: &kind},
			},
			Capacity: map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{"memory": {Value: each.Memory}},
			Taints:   each.Taints,
		}
		if each.Shared {
			yes, step := true, resource.MustParse("1Mi")
			device.AllowMultipleAllocations = &yes
			device.Capacity["memory"] = resourceapi.DeviceCapacity{
				Value: each.Memory,
				RequestPolicy: &resourceapi.CapacityRequestPolicy{
					Default:    &each.Memory,
					ValidRange: &resourceapi.CapacityRequestPolicyRange{Min: &step, Step: &step},
				},
			}
		}
		devices = append(devices, device)
	}
	pool := resourceslice.Pool{Slices: []resourceslice.Slice{{Devices: devices}}}
	return d.helper.PublishResources(ctx, resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{d.node: pool}})
}

func parse(text []byte) ([]gpu, error) {
	var gpus []gpu
	if err := json.Unmarshal(text, &gpus); err != nil {
		return nil, err
	}
	return gpus, nil
}

func (d *driver) uuids() (map[string]string, error) {
	text, err := os.ReadFile(d.file)
	if err != nil {
		return nil, err
	}
	gpus, err := parse(text)
	found := map[string]string{}
	for _, each := range gpus {
		found[each.Name] = each.UUID
	}
	return found, err
}

// PrepareResourceClaims is called before a pod with these claims starts, and may be called again.
func (d *driver) PrepareResourceClaims(_ context.Context, claims []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	result := map[types.UID]kubeletplugin.PrepareResult{}
	for _, claim := range claims {
		devices, err := d.prepare(claim)
		result[claim.UID] = kubeletplugin.PrepareResult{Devices: devices, Err: err}
	}
	return result, nil
}

func (d *driver) prepare(claim *resourceapi.ResourceClaim) ([]kubeletplugin.Device, error) {
	uuids, err := d.uuids()
	if err != nil {
		return nil, err
	}
	var devices []kubeletplugin.Device
	var entries []map[string]any
	for index, allocated := range claim.Status.Allocation.Devices.Results {
		if allocated.Driver != d.name {
			continue
		}
		if allocated.Pool != d.node {
			return nil, fmt.Errorf("device %s is of pool %s, this node is %s", allocated.Device, allocated.Pool, d.node)
		}
		uuid, known := uuids[allocated.Device]
		if !known {
			return nil, fmt.Errorf("there is no device %s on %s", allocated.Device, d.node)
		}
		name := fmt.Sprintf("%s-%d", claim.UID, index)
		variable := strings.ToUpper(strings.ReplaceAll(allocated.Device, "-", "_"))
		entries = append(entries, map[string]any{
			"name":           name,
			"containerEdits": map[string]any{"env": []string{fmt.Sprintf("FAKE_%s=%s", variable, uuid)}},
		})
		devices = append(devices, kubeletplugin.Device{
			Requests:     []string{allocated.Request},
			PoolName:     allocated.Pool,
			DeviceName:   allocated.Device,
			ShareID:      allocated.ShareID,
			CDIDeviceIDs: []string{fmt.Sprintf("%s/%s=%s", d.name, cdiClass, name)},
		})
	}
	return devices, d.write(claim.UID, map[string]any{"cdiVersion": "0.6.0", "kind": d.name + "/" + cdiClass, "devices": entries})
}

func (d *driver) write(claim types.UID, spec map[string]any) error {
	text, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	final := d.path(claim)
	if err := os.WriteFile(final+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(final+".new", final)
}

func (d *driver) path(claim types.UID) string {
	return filepath.Join(d.cdi, fmt.Sprintf("%s-claim-%s.json", d.name, claim))
}

// UnprepareResourceClaims is called when the last pod of a claim is gone from this node, and may be called again.
func (d *driver) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	result := map[types.UID]error{}
	for _, claim := range claims {
		err := os.Remove(d.path(claim.UID))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		result[claim.UID] = err
	}
	return result, nil
}

// HandleError is told what fails in the background; what a retry will not mend ends the process.
func (d *driver) HandleError(_ context.Context, err error, message string) {
	log.Printf("%s: %v", message, err)
	if !errors.Is(err, kubeletplugin.ErrRecoverable) {
		d.cancel()
	}
}
