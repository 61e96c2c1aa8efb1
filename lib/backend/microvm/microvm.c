/* SPDX-License-Identifier: MIT */
#include "backend/microvm/microvm.h"

#include <errno.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include <agentd/policy.h>
#include <agentd/result.h>

#include "backend/microvm/private.h"

#define MONITOR "/usr/bin/qemu-system-x86_64"

enum {
	/* A trial of KVM, a boot without it, the set-up and the working directory. */
	SETUP_MAX_MS = 150000,
	/* The agent's kill, the working directory's way back, the carrier's own check. */
	CLOSE_MAX_MS = 80000
};

int microvm_check(const agentd_spec *spec, agentd_error **reterr)
{
	const char *workdir = agentd_spec_workdir(spec), *source, *target;
	uint32_t access;

	if (agentd_spec_net(spec) == AGENTD_NET_FULL)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL,
			       "the microvm backend does not give the host's network; the policy's "
			       "network mode must be \"none\" or \"allow\"");
	if (agentd_spec_netns(spec) >= 0)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, "/netns",
			       "a virtual machine cannot join a network namespace of the host");
	if (agentd_spec_credentials_fd(spec) >= 0)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, "/credentials",
			       "the microvm backend does not hand over credentials");
	if (!workdir)
		return ad_fail(reterr, AGENTD_ERR_INVALID, "/workdir", "there is no workdir");
	if (strcmp(workdir, "/") == 0)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, "/workdir",
			       "the root directory cannot be carried into a virtual machine");
	if (!(agentd_spec_workdir_access(spec) & AGENTD_ACCESS_READ))
		return ad_fail(reterr, AGENTD_ERR_DENIED, "/workdir",
			       "the policy denies the working directory \"%s\"", workdir);
	for (size_t i = 0; i < agentd_spec_mount_count(spec); i++) {
		const char *pointer = agentd_spec_mount_pointer(spec, i);

		agentd_spec_mount_at(spec, i, &source, &target, &access);
		if (strncmp(pointer, "/mounts/", 8) == 0)
			return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, pointer,
				       "the microvm backend carries the working directory only: "
				       "\"%s\" cannot be mounted",
				       source);
	}
	return 0;
}

/* ---- its probe: everything that a machine is made of, but for booting one, which is the
 * first command's, as is finding out about KVM */

static int check_program(const char *path, const char *origin, agentd_error **reterr)
{
	if (access(path, X_OK) == 0)
		return 0;
	if (errno != ENOENT && errno != ENOTDIR)
		return ad_fail_errno(reterr, errno, "the program %s", path);
	return ad_fail(reterr, AGENTD_ERR_NOTFOUND, NULL, "there is no %s; %s", path, origin);
}

static int check_monitor(const struct microvm *vm, agentd_error **reterr)
{
	int r;

#if !defined(__x86_64__)
	return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL,
		       "the microvm backend runs on x86-64 only");
#endif
	r = check_program(vm->monitor, "the Debian package qemu-system-x86 has it", reterr);
	if (r < 0)
		return r;
	return check_program(vm->guest, "it is a part of agentd", reterr);
}

static int32_t microvm_probe_start(void *self, agentd_backend_report *report)
{
	struct microvm *vm = self;
	struct image image;
	agentd_error *err = NULL;
	int r = check_monitor(vm, &err);

	if (r == 0)
		r = image_open(vm->image_dir, NULL, &image, &err);
	if (r == 0) {
		image_close(&image);
		accel_load(vm);
		agentd_backend_report_layer(report, "vm", AGENTD_LAYER_ENFORCED, vm->engine->name);
		agentd_backend_report_layer(
			report, "accel",
			vm->kvm == KVM_USABLE ? AGENTD_LAYER_ENFORCED : AGENTD_LAYER_DEGRADED,
			vm->kvm == KVM_USABLE  ? "kvm" :
			vm->kvm == KVM_UNKNOWN ? "the first machine will tell whether KVM works" :
						 vm->kvm_reason.data);
	}
	agentd_backend_report_done(report, err);
	return 0;
}

/* ---- life */

static void microvm_close(void *self)
{
	struct microvm *vm = self;

	template_free_all(vm);
	ad_local_environment_free(&vm->environment);
	ad_buf_free(&vm->kvm_reason);
	free(vm->image_dir);
	free(vm->monitor);
	free(vm->guest);
	free(vm);
}

static uint64_t most_memory(void)
{
	struct sysinfo info;

	return sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit / 2 :
				     AD_MICROVM_MEMORY_BYTES;
}

static int init(struct microvm *vm, const struct ad_microvm_opts *opts)
{
	struct ad_local_default defaults[AD_SANDBOX_DEFAULTS];

	ad_sandbox_defaults("/bin/bash", defaults);
	vm->engine = &engine_qemu;
	vm->launcher = opts->sandbox.launcher;
	vm->sandbox = opts->sandbox;
	vm->image_dir = opts->image ? strdup(opts->image) : image_default_dir();
	vm->monitor = strdup(opts->monitor ? opts->monitor : MONITOR);
	vm->guest = strdup(opts->guest);
	vm->template_always = opts->snapshots;
	vm->memory_bytes = opts->memory_bytes;
	vm->memory_most = most_memory();
	vm->workdir_bytes = opts->workdir_bytes;
	vm->uid = opts->uid;
	vm->gid = opts->gid;
	vm->first_ns = ad_sys_now_ns();
#if defined(__x86_64__)
	vm->first_tsc = __rdtsc();
#endif
	if (ad_local_environment_init(&vm->environment, defaults, AD_COUNT(defaults)) < 0)
		return AGENTD_ERR_NOMEM;
	return vm->image_dir && vm->monitor && vm->guest ? 0 : AGENTD_ERR_NOMEM;
}

static int32_t microvm_open(void *userdata, struct event_base *base, void **ret_self)
{
	struct microvm *vm = calloc(1, sizeof(*vm));

	(void)base;
	if (!vm)
		return AGENTD_ERR_NOMEM;
	ad_list_init(&vm->templates);
	if (init(vm, userdata) < 0) {
		microvm_close(vm);
		return AGENTD_ERR_NOMEM;
	}
	*ret_self = vm;
	return 0;
}

const struct agentd_backend_ops *ad_microvm_backend_ops(void)
{
	static const char *const aliases[] = { "vm", NULL };
	static const struct agentd_backend_ops ops = {
		.size = sizeof(ops),
		.abi = AGENTD_BACKEND_ABI,
		.name = "microvm",
		.aliases = aliases,
		.isolation = AGENTD_ISOLATION_VM,
		.open = microvm_open,
		.close = microvm_close,
		.probe_start = microvm_probe_start,
		.task_start = task_start,
		.task_kill = task_kill,
		.task_free = task_free,
		.task_signal = task_signal,
		.task_write = task_write,
		.task_close_stdin = task_close_stdin,
		.task_set_paused = task_set_paused,
		.session_start = session_start,
		.session_stop = session_stop,
		.session_free = session_free,
		.session_adopt = session_adopt,
		.setup_max_ms = SETUP_MAX_MS,
		.close_max_ms = CLOSE_MAX_MS,
	};

	return &ops;
}
