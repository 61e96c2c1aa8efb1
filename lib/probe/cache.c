/* SPDX-License-Identifier: MIT */
#include "probe/private.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cache/cache.h"
#include "json/json.h"

#define CACHE_FILE "probe.json"

/* What of the process's privileges its commands inherit. */
static void put_status(struct ad_buf *key)
{
	static const char *const wanted[] = { "Uid:",    "Gid:",    "Groups:",     "CapPrm:",
					      "CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:" };
	FILE *file = fopen("/proc/self/status", "re");
	char *line = NULL;
	size_t cap = 0;

	while (file && getline(&line, &cap, file) > 0) {
		for (size_t i = 0; i < AD_COUNT(wanted); i++) {
			if (strncmp(line, wanted[i], strlen(wanted[i])) == 0)
				ad_buf_puts(key, line);
		}
	}
	free(line);
	if (file)
		fclose(file);
}

char *cache_key(const char *helper_path)
{
	static const char *const files[] = {
		"/proc/sys/kernel/random/boot_id",
		"/proc/sys/kernel/osrelease",
		"/proc/self/attr/current",
		"/proc/self/cgroup",
		/* Whether there is a sandbox. */
		"/proc/sys/kernel/unprivileged_userns_clone",
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
		"/proc/sys/user/max_user_namespaces",
		"/proc/sys/user/max_mnt_namespaces",
		"/proc/sys/user/max_pid_namespaces",
		"/proc/sys/user/max_net_namespaces",
		"/proc/sys/user/max_ipc_namespaces",
		"/proc/sys/user/max_uts_namespaces",
		"/proc/sys/user/max_cgroup_namespaces",
		/* What can be done outside of it. */
		"/proc/sys/kernel/io_uring_disabled",
		"/proc/sys/kernel/perf_event_paranoid",
		"/proc/sys/kernel/unprivileged_bpf_disabled",
		"/proc/sys/kernel/yama/ptrace_scope",
		"/proc/sys/vm/unprivileged_userfaultfd",
	};
	static const char *const namespaces[] = { "user", "mnt", "pid",   "net",
						  "ipc",  "uts", "cgroup" };
	ad_autobuf struct ad_buf key = { 0 };

	ad_buf_printf(&key, "agentd %s\n", agentd_version_string());
	for (size_t i = 0; i < AD_COUNT(files); i++)
		ad_cache_key_text(&key, files[i]);
	for (size_t i = 0; i < AD_COUNT(namespaces); i++) {
		char path[64], link[64];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/ns/%s", namespaces[i]);
		n = readlink(path, link, sizeof(link));
		ad_buf_append(&key, link, n > 0 ? (size_t)n : 0);
		ad_buf_puts(&key, "\n");
	}
	put_status(&key);
	ad_cache_key_file(&key, helper_path);
	return ad_buf_steal(&key);
}

agentd_probe *cache_load(const char *dir, const char *key)
{
	ad_autojson struct json_object *value = ad_cache_load(dir, CACHE_FILE, key);
	agentd_probe *probe = NULL;

	if (!value || probe_read(value, &probe, NULL) < 0)
		return NULL;
	probe->cached = true;
	return probe;
}

void cache_store(const char *dir, const char *key, const agentd_probe *probe)
{
	bool ok;
	struct json_object *value = probe_write(probe, &ok);

	if (ok)
		ad_cache_store(dir, CACHE_FILE, key, value);
	else
		ad_json_free(value);
}
