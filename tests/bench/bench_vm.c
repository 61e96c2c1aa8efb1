/* SPDX-License-Identifier: MIT */
/* A virtual machine under emulation, without the library around it: what its boot takes,
 * also beside the library's, and what a command in a machine that runs already does. Each
 * command beside posix_spawn of the same on the host. The image is AGENTD_TEST_IMAGE, or the
 * superuser's. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../guest/vm.h"

enum { USER = 1000, SETTLE_MS = 500 };

/* Of the superuser's default place, which everybody may read. */
#define IMAGE "/var/cache/agentd"
#define MONITOR "/usr/bin/qemu-system-x86_64"
#define STOCK "machine"
#define LIBRARY "agentd, microvm"
#define MACHINE "running machine"
#define INSIDE "the machine's own shell"

static const struct command {
	const char *name, *argv[4];
} commands[] = {
	{ "/bin/true", { "/bin/true" } },
	{ "bash -c :", { "/bin/bash", "-c", ":" } },
};

static const struct output {
	const char *name, *of;
	unsigned int kib; /* of each write */
} outputs[] = {
	{ "output, 128 KiB writes", "bs=128k", 128 },
	{ "output, 8 KiB writes", "bs=8k", 8 },
};

static const struct bench_row boot_row = { "vm", "boot", STOCK, "start to ready", "us", false };
static const struct bench_row byte_rows[] = {
	{ "vm", "boot", STOCK, "start to first byte", "us", false },
	{ "vm", "boot", LIBRARY, "start to first byte", "us", false },
};
static const struct bench_row ping_row = { "vm", "nothing", MACHINE, "round trip", "us", false };
static const struct bench_row memory_row = { "vm",  "idle", MACHINE, "memory of the monitor",
					     "KiB", false };

static struct bench_row command_row(const struct command *command, const char *subject)
{
	return (struct bench_row){ "vm", command->name, subject, "start to finish", "us", false };
}

enum { OUTPUT_SUBJECTS = 3 };

static struct bench_row output_row(const struct output *output, size_t subject)
{
	static const char *const subjects[OUTPUT_SUBJECTS] = { MACHINE, INSIDE, LIBRARY };

	return (struct bench_row){
		"vm", output->name, subjects[subject], "throughput", "MB/s", true
	};
}

static bool is_hello(const struct vm *vm, const void *arg)
{
	(void)arg;
	return vm->hello;
}

static void boot(struct vm *vm, const char *image, struct bench_samples *samples,
		 struct bench_samples *first_byte)
{
	uint64_t begin = bench_now_ns();

	if (!vm_start(vm, image) || !vm_wait(vm, is_hello, NULL, 120 * VM_SECOND) ||
	    !vm_setup(vm, (uint64_t)time(NULL) * 1000000000))
		bench_fail(image, "no machine came of it");
	bench_sample_since(samples, begin);
	bench_sample(first_byte, (double)(vm->first_byte_at - vm->started_at) * 1000);
}

/* ---- the library's, a machine for each command */

struct library {
	struct bench_runner runner;
	double boot_ms; /* to the first byte, by the receipt */
	uint64_t started_at, last_at, bytes;
};

static void on_started(agentd_exec *exec, void *userdata)
{
	struct library *library = userdata;

	(void)exec;
	library->started_at = bench_now_ns();
	library->bytes = 0;
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct library *library = userdata;

	(void)exec;
	(void)stream;
	(void)data;
	library->bytes += len;
	library->last_at = bench_now_ns();
	return AGENTD_SINK_CONTINUE;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	static const char before[] = "booted in ";
	struct library *library = userdata;

	for (size_t i = 0; i < agentd_result_protection_count(result); i++) {
		const char *layer, *reason, *at;

		if (agentd_result_protection_at(result, i, &layer, NULL, &reason) < 0)
			continue;
		at = strstr(reason, before);
		if (strcmp(layer, "vm") == 0 && at)
			library->boot_ms = strtod(at + sizeof(before) - 1, NULL);
	}
	if (agentd_result_status(result) != AGENTD_STATUS_OK)
		bench_fail("a command", agentd_result_error(result) ?
						agentd_error_message(agentd_result_error(result)) :
						"it failed");
	library->runner.finished++;
	library->runner.ok++;
	agentd_exec_unref(exec);
}

static void library_open(struct library *library, const char *image)
{
	const struct agentd_sink_ops ops = { .size = sizeof(ops),
					     .started = on_started,
					     .output = on_output,
					     .finished = on_finished };
	agentd_error *err = NULL;

	bench_use_machines(image, MONITOR);
	bench_runner_open(&library->runner, NULL, "microvm", 0, 1);
	agentd_sink_unref(library->runner.sink);
	bench_must(agentd_sink_new(&ops, library, &library->runner.sink, &err), "sink", &err);
}

static void library_run(struct library *library, const char *const *argv)
{
	bench_runner_set_argv(&library->runner, argv);
	bench_runner_run(&library->runner);
}

/* In turn; the machine that is left is the last. */
static void bench_boot(struct vm *vm, struct library *library, const char *image, unsigned int runs)
{
	static const char *const argv[] = { "/bin/true", NULL };
	struct bench_samples ready = { 0 }, bytes[2] = { 0 };

	/* Whether KVM can be used is not to be found out meanwhile. */
	library_run(library, argv);
	for (unsigned int i = 0; i < runs; i++) {
		library_run(library, argv);
		bench_sample(&bytes[1], library->boot_ms * 1000);
		if (i > 0)
			vm_free(vm);
		boot(vm, image, &ready, &bytes[0]);
	}
	bench_print(&boot_row, &ready);
	for (size_t i = 0; i < BENCH_COUNT(byte_rows); i++)
		bench_print(&byte_rows[i], &bytes[i]);
}

/* ---- in a machine that runs */

static void run_inside(struct vm *vm, const struct command *command)
{
	const struct vm_run run = { .argv = command->argv, .uid = USER };
	const struct vm_task *task = vm_do(vm, &run);

	if (!task->closed || task->wait_status != 0)
		bench_fail(command->name, "did not exit with 0 in the machine");
}

/* What the same takes a shell in there, by the machine's clock. */
static double time_inside(struct vm *vm, const struct command *command)
{
	char script[256];
	const char *const argv[] = { "/bin/bash", "-c", script, NULL };
	const struct vm_run run = { .argv = argv, .uid = USER };
	const struct vm_task *task;

	snprintf(script, sizeof(script),
		 "s=$EPOCHREALTIME; for i in 1 2 3 4 5; do %s; done; e=$EPOCHREALTIME; "
		 "echo $(((${e/./} - ${s/./}) / 5))",
		 command->name);
	task = vm_do(vm, &run);
	if (!task->closed || task->wait_status != 0)
		bench_fail(command->name, "was not timed in the machine");
	return strtod(vm_text(task), NULL);
}

/* Each in turn with the others. */
static void bench_command(struct vm *vm, const struct command *command, unsigned int runs)
{
	const struct bench_row rows[3] = { command_row(command, "posix_spawn"),
					   command_row(command, MACHINE),
					   command_row(command, INSIDE) };
	struct bench_samples samples[3] = { 0 };

	run_inside(vm, command); /* from now on it is in memory, and translated */
	for (unsigned int i = 0; i < runs; i++) {
		uint64_t begin = bench_now_ns();

		bench_run_program(command->argv, BENCH_SPAWN);
		bench_sample_since(&samples[0], begin);
		begin = bench_now_ns();
		run_inside(vm, command);
		bench_sample_since(&samples[1], begin);
		bench_sample(&samples[2], time_inside(vm, command));
	}
	for (size_t i = 0; i < BENCH_COUNT(rows); i++)
		bench_print(&rows[i], &samples[i]);
}

static double throughput(uint64_t ns, unsigned int mib)
{
	return (double)mib * 1024 * 1024 * 1000 / (double)ns;
}

static void put_out(struct vm *vm, const struct vm_run *run, unsigned int mib,
		    struct bench_samples *samples)
{
	uint64_t begin = bench_now_ns();
	const struct vm_task *task = vm_do(vm, run);

	if (!task->closed || task->wait_status != 0)
		bench_fail("dd", "did not exit with 0 in the machine");
	bench_sample(samples, throughput(bench_now_ns() - begin, mib));
}

/* Beside the same through a pipe that does not leave the machine, and the library's. */
static void bench_output(struct vm *vm, struct library *library, const struct output *output,
			 unsigned int mib, unsigned int runs)
{
	struct bench_samples samples[OUTPUT_SUBJECTS] = { 0 };
	char count[32], pipe[128];
	const char *const argv[] = { "/bin/dd", "if=/dev/zero", output->of,
				     count,     "status=none",  NULL };
	const struct vm_run out = { .argv = argv, .uid = USER };
	const struct vm_run piped = { .script = pipe, .uid = USER };

	snprintf(count, sizeof(count), "count=%u", mib * 1024 / output->kib);
	snprintf(pipe, sizeof(pipe), "dd if=/dev/zero %s %s status=none | cat >/dev/null",
		 output->of, count);
	for (unsigned int i = 0; i < runs; i++) {
		put_out(vm, &out, mib, &samples[0]);
		put_out(vm, &piped, mib, &samples[1]);
		library_run(library, argv);
		if (library->bytes != (uint64_t)mib * 1024 * 1024)
			bench_fail("dd", "the library did not have all of its output");
		bench_sample(&samples[2], throughput(library->last_at - library->started_at, mib));
	}
	for (size_t i = 0; i < OUTPUT_SUBJECTS; i++) {
		const struct bench_row row = output_row(output, i);

		bench_print(&row, &samples[i]);
	}
}

static void bench_ping(struct vm *vm, unsigned int runs)
{
	struct bench_samples samples = { 0 };

	for (unsigned int i = 0; i < runs; i++) {
		uint64_t begin = bench_now_ns();

		if (vm_ping(vm, 10 * VM_SECOND) == UINT64_MAX)
			bench_fail("a ping", "no answer");
		bench_sample_since(&samples, begin);
	}
	bench_print(&ping_row, &samples);
}

static void bench_memory(struct vm *vm)
{
	static const char *const names[] = { "Pss:", NULL };
	struct bench_samples samples = { 0 };
	char path[64];
	uint64_t bytes;

	vm_wait(vm, NULL, NULL, SETTLE_MS);
	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", vm->pid);
	bytes = bench_proc_kb(path, names);
	if (bytes == 0) {
		bench_print_cannot(&memory_row, "the monitor's memory may not be looked at");
		return;
	}
	bench_sample(&samples, (double)bytes / 1024);
	bench_print(&memory_row, &samples);
}

/* Without a machine there is nothing to compare with either. */
static void print_cannot(const char *missing)
{
	char reason[4200];

	snprintf(reason, sizeof(reason), "there is no %s", missing);
	bench_print_cannot(&boot_row, reason);
	for (size_t i = 0; i < BENCH_COUNT(byte_rows); i++)
		bench_print_cannot(&byte_rows[i], reason);
	bench_print_cannot(&ping_row, reason);
	for (size_t i = 0; i < BENCH_COUNT(commands); i++) {
		const struct bench_row rows[3] = { command_row(&commands[i], "posix_spawn"),
						   command_row(&commands[i], MACHINE),
						   command_row(&commands[i], INSIDE) };

		for (size_t j = 0; j < BENCH_COUNT(rows); j++)
			bench_print_cannot(&rows[j], reason);
	}
	for (size_t i = 0; i < BENCH_COUNT(outputs); i++) {
		for (size_t j = 0; j < OUTPUT_SUBJECTS; j++) {
			const struct bench_row row = output_row(&outputs[i], j);

			bench_print_cannot(&row, reason);
		}
	}
	bench_print_cannot(&memory_row, reason);
}

int main(int argc, char **argv)
{
	/* Before the environment is cleared. */
	const char *given = getenv("AGENTD_TEST_IMAGE");
	char *image = strdup(given ? given : IMAGE);
	bool quick = bench_init(argc, argv);
	unsigned int boots = quick ? 1 : 5, runs = quick ? 5 : 50;
	const char *missing = image ? vm_missing(image) : "memory";
	static struct library library;
	static struct vm vm;

	if (missing) {
		print_cannot(missing);
	} else {
		library_open(&library, image);
		bench_boot(&vm, &library, image, boots);
		bench_ping(&vm, runs);
		for (size_t i = 0; i < BENCH_COUNT(commands); i++)
			bench_command(&vm, &commands[i], runs);
		for (size_t i = 0; i < BENCH_COUNT(outputs); i++)
			bench_output(&vm, &library, &outputs[i], quick ? 8 : 300, quick ? 1 : 5);
		bench_memory(&vm);
		vm_free(&vm);
		bench_runner_close(&library.runner);
	}
	free(image);
	bench_exit();
	return 0;
}
