/* SPDX-License-Identifier: MIT */
#include "backend/local/local.h"

#include <agentd/result.h>

/* A limit, and what each means of enforcing it comes to. NULL: cannot be. */
struct line {
	const char *layer;
	const char *reasons[AD_MEANS_COUNT];
};

static const struct line memory_line = {
	"memory",
	{ [AD_MEANS_NONE] = "no cgroup and no /proc to watch it by",
	  [AD_MEANS_RLIMIT] = "RLIMIT_DATA, per process",
	  [AD_MEANS_WATCHDOG] = "RLIMIT_DATA per process, and the tree polled (no usable cgroup)",
	  [AD_MEANS_CGROUP1] = "cgroup v1 memory.limit_in_bytes",
	  [AD_MEANS_CGROUP2] = "cgroup v2 memory.max" },
};
static const struct line pids_line = {
	"pids",
	{ [AD_MEANS_NONE] = "no cgroup and no /proc to watch it by",
	  [AD_MEANS_RLIMIT] = "RLIMIT_NPROC, loosely, per user",
	  [AD_MEANS_WATCHDOG] = "the tree polled (no usable cgroup)",
	  [AD_MEANS_CGROUP1] = "cgroup v1 pids.max",
	  [AD_MEANS_CGROUP2] = "cgroup v2 pids.max" },
};
static const struct line cpu_line = {
	"cpu",
	{ [AD_MEANS_NONE] = "only a cgroup bounds it, and none is usable",
	  [AD_MEANS_CGROUP1] = "cgroup v1 cpu.cfs_quota_us",
	  [AD_MEANS_CGROUP2] = "cgroup v2 cpu.max" },
};
static const struct line cpu_time_line = {
	"cpu-time",
	{ [AD_MEANS_NONE] = "no /proc to watch it by",
	  [AD_MEANS_RLIMIT] = "RLIMIT_CPU, per process",
	  [AD_MEANS_WATCHDOG] = "the tree polled, and RLIMIT_CPU per process" },
};
static const struct line io_line = {
	"io",
	{ [AD_MEANS_NONE] = "no /proc to watch it by",
	  [AD_MEANS_WATCHDOG] = "the tree polled in /proc/PID/io" },
};
static const struct line tree_kill_line = {
	"tree-kill",
	{ [AD_MEANS_NONE] = "process group only: no cgroup.kill, no /proc",
	  [AD_MEANS_WATCHDOG] = "child subreaper and /proc (no cgroup.kill)",
	  [AD_MEANS_CGROUP2] = "cgroup.kill, child subreaper and /proc",
	  [AD_MEANS_PIDNS] = "the end of its pid namespace" },
};

static int32_t state_of(uint8_t means)
{
	switch (means) {
	case AD_MEANS_NONE:
		return AGENTD_LAYER_ABSENT;
	case AD_MEANS_RLIMIT:
	case AD_MEANS_WATCHDOG:
		return AGENTD_LAYER_DEGRADED;
	default:
		return AGENTD_LAYER_ENFORCED;
	}
}

static const char *reason_of(const struct line *line, uint8_t means)
{
	return line->reasons[means] ? line->reasons[means] : "";
}

void ad_local_put_rlimits(struct ad_buf *text, const struct agentd_limits *limits)
{
	ad_buf_puts(text, "core 0");
	if (limits->file_bytes)
		ad_buf_puts(text, ", file size");
	if (limits->open_files_max)
		ad_buf_puts(text, ", open files");
}

void ad_local_put_ids(struct ad_buf *text, const struct ad_launch_receipt *receipt)
{
	ad_buf_puts(text, "uid ");
	ad_buf_decimal(text, receipt->uid);
	ad_buf_puts(text, ", gid ");
	ad_buf_decimal(text, receipt->gid);
}

void ad_local_report(agentd_task *task, const struct agentd_limits *limits,
		     const struct ad_launch_receipt *receipt)
{
	const struct {
		const struct line *line;
		uint8_t means;
		bool wanted;
	} lines[] = {
		{ &memory_line, receipt->memory, limits->mem_bytes != 0 },
		{ &pids_line, receipt->pids, limits->pids_max != 0 },
		{ &cpu_line, receipt->cpu, limits->cpu_ms_per_100ms != 0 },
		{ &cpu_time_line, receipt->cpu_time, limits->cpu_time_ms != 0 },
		{ &io_line, receipt->io, limits->io_bytes != 0 },
		{ &tree_kill_line, receipt->tree_kill, true },
	};

	for (size_t i = 0; i < AD_COUNT(lines); i++) {
		if (lines[i].wanted)
			agentd_task_protection(task, lines[i].line->layer, state_of(lines[i].means),
					       reason_of(lines[i].line, lines[i].means));
	}
	agentd_task_protection(task, "environment", AGENTD_LAYER_ENFORCED, "built from nothing");
}

void ad_local_report_best(agentd_backend_report *report, const struct ad_launch_receipt *best)
{
	const struct {
		const struct line *line;
		uint8_t means;
	} lines[] = {
		{ &memory_line, best->memory }, { &pids_line, best->pids },
		{ &cpu_line, best->cpu },       { &cpu_time_line, best->cpu_time },
		{ &io_line, best->io },         { &tree_kill_line, best->tree_kill },
	};

	for (size_t i = 0; i < AD_COUNT(lines); i++)
		agentd_backend_report_layer(report, lines[i].line->layer, state_of(lines[i].means),
					    reason_of(lines[i].line, lines[i].means));
	agentd_backend_report_layer(report, "environment", AGENTD_LAYER_ENFORCED,
				    "built from nothing");
}
