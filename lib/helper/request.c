/* SPDX-License-Identifier: MIT */
/* How a command gets from the helper to whoever will supervise it. */
#include "helper/sandbox.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static uint8_t sent[REQUEST_MAX], received[REQUEST_MAX];
static struct request_content content;

int request_add_leaf(struct request *request, const struct leaf *leaf,
		     struct cgroup_entry *ret_entry, int *fds, size_t *fd_count)
{
	int r;

	*ret_entry = (struct cgroup_entry){ .v2_dir = -1, .v2_procs = -1 };
	if (!leaf)
		return 0;
	request->has_leaf = true;
	request->leaf = *leaf;
	r = cgroup_open_entry(leaf, ret_entry);
	request->tasks = (uint8_t)ret_entry->count;
	for (size_t i = 0; i < ret_entry->count; i++)
		fds[(*fd_count)++] = ret_entry->tasks[i];
	request->v2_procs = ret_entry->v2_procs >= 0;
	if (request->v2_procs)
		fds[(*fd_count)++] = ret_entry->v2_procs;
	return r;
}

int request_send(int sock, const struct request *request, const struct ad_sys_msg *spawn,
		 const int *fds, size_t fd_count)
{
	size_t len = request->spawn_fd || !spawn ? 0 : spawn->len;

	memcpy(sent, request, sizeof(*request));
	if (len)
		memcpy(sent + sizeof(*request), spawn->data, len);
	return ad_sys_send(sock, sent, sizeof(*request) + len, fds, fd_count, MSG_DONTWAIT);
}

static bool unpack_spawn(const struct ad_sys_msg *message, int memory_file,
			 struct ad_msg_spawn *ret)
{
	const uint8_t *bytes = (const uint8_t *)message->data + sizeof(struct request);
	size_t len = message->len - sizeof(struct request);

	if (memory_file >= 0) {
		ssize_t size = ad_sys_memfd_size(memory_file);

		if (size <= 0)
			return false;
		len = (size_t)size;
		bytes = mmap(NULL, len, PROT_READ, MAP_PRIVATE, memory_file, 0);
		if (bytes == MAP_FAILED)
			return false;
		close(memory_file);
	}
	return ad_msg_spawn_decode(ret, bytes, len);
}

bool request_unpack(const struct ad_sys_msg *message, struct request_content *ret)
{
	const struct request *request = message->data;
	struct cgroup_entry *entry = &ret->entry;
	const int *fds = message->fds;
	size_t at = 0;
	int memory_file;

	if (message->len < sizeof(*request) || message->fds_lost ||
	    request->tasks > AD_COUNT(entry->tasks) ||
	    message->fd_count != (size_t)request->spawn_fd + request->credentials +
					 request->session + request->ahead + request->tasks +
					 request->v2_procs)
		return false;
	memory_file = request->spawn_fd ? fds[at++] : -1;
	ret->token = request->credentials ? fds[at++] : -1;
	ret->session = request->session ? fds[at++] : -1;
	ret->ahead = request->ahead ? fds[at++] : -1;
	*entry = (struct cgroup_entry){ .count = request->tasks, .v2_dir = -1, .v2_procs = -1 };
	for (size_t i = 0; i < request->tasks; i++)
		entry->tasks[i] = fds[at++];
	if (request->v2_procs)
		entry->v2_procs = fds[at++];
	return request->ahead || unpack_spawn(message, memory_file, &ret->spawn);
}

const struct request_content *request_wait(int sock, struct supervise *job,
					   const struct helper_shared *shared)
{
	struct ad_sys_msg in = { .data = received, .cap = sizeof(received) };
	const struct request *request = in.data;

	if (ad_sys_recv(sock, &in, 0) <= 0 || !request_unpack(&in, &content))
		return NULL;
	job->slot = &shared->slots[request->slot];
	job->spawn = &content.spawn;
	job->enforcement = request->enforcement;
	job->set_ids = request->set_ids;
	return &content;
}

bool request_ready(int sock)
{
	const uint8_t ready = 1;

	return ad_sys_send(sock, &ready, sizeof(ready), NULL, 0, 0) == 0;
}

void request_expect(const struct helper_shared *shared)
{
	own_page(received);
	own_page(&content);
	/* Where most commands have theirs. It is shared: looking is all that is allowed. */
	(void)atomic_load(&shared->slots[0].over);
}

void request_own_pages(void)
{
	own_page(sent);
}
