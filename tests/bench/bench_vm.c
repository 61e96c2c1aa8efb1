/* SPDX-License-Identifier: MIT */
/* A virtual machine under emulation, without the library around it: what its boot takes,
 * and what a command in a machine that runs already does. Each command beside posix_spawn
 * of the same on the host. The image is AGENTD_TEST_IMAGE, or the superuser's. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../guest/vm.h"

enum { USER = 1000, SETTLE_MS = 500 };

/* Of the superuser's default place, which everybody may read. */
#define IMAGE "/var/cache/agentd"
#define MACHINE "running machine"
#define INSIDE "the machine's own shell"

static const struct command {
	const char *name, *argv[4];
} commands[] = {
	{ "/bin/true", { "/bin/true" } },
	{ "bash -c :", { "/bin/bash", "-c", ":" } },
};

static const struct bench_row boot_row = { "vm", "boot", "machine", "start to ready", "us", false };
static const struct bench_row ping_row = { "vm", "nothing", MACHINE, "round trip", "us", false };
static const struct bench_row memory_row = { "vm",  "idle", MACHINE, "memory of the monitor",
					     "KiB", false };

static struct bench_row command_row(const struct command *command, const char *subject)
{
	return (struct bench_row){ "vm", command->name, subject, "start to finish", "us", false };
}

static bool is_hello(const struct vm *vm, const void *arg)
{
	(void)arg;
	return vm->hello;
}

static void boot(struct vm *vm, const char *image, struct bench_samples *samples)
{
	uint64_t begin = bench_now_ns();

	if (!vm_start(vm, image) || !vm_wait(vm, is_hello, NULL, 120 * VM_SECOND) ||
	    !vm_setup(vm, (uint64_t)time(NULL) * 1000000000))
		bench_fail(image, "no machine came of it");
	bench_sample_since(samples, begin);
}

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
	bench_print_cannot(&ping_row, reason);
	for (size_t i = 0; i < BENCH_COUNT(commands); i++) {
		const struct bench_row rows[3] = { command_row(&commands[i], "posix_spawn"),
						   command_row(&commands[i], MACHINE),
						   command_row(&commands[i], INSIDE) };

		for (size_t j = 0; j < BENCH_COUNT(rows); j++)
			bench_print_cannot(&rows[j], reason);
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
	struct bench_samples samples = { 0 };
	static struct vm vm;

	if (missing) {
		print_cannot(missing);
	} else {
		for (unsigned int i = 0; i < boots; i++) {
			if (i > 0)
				vm_free(&vm);
			boot(&vm, image, &samples);
		}
		bench_print(&boot_row, &samples);
		bench_ping(&vm, runs);
		for (size_t i = 0; i < BENCH_COUNT(commands); i++)
			bench_command(&vm, &commands[i], runs);
		bench_memory(&vm);
		vm_free(&vm);
	}
	free(image);
	bench_exit();
	return 0;
}
