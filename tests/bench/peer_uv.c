/* SPDX-License-Identifier: MIT */
#include "peer.h"

#include <uv.h>

#include "bench.h"

struct reading {
	char buf[256 << 10]; /* libuv suggests 64 KiB */
	uint64_t *total;     /* NULL: not counted */
};

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
	struct reading *reading = handle->data;

	(void)suggested;
	*buf = uv_buf_init(reading->buf, sizeof(reading->buf));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct reading *reading = stream->data;

	(void)buf;
	if (n < 0)
		uv_close((uv_handle_t *)stream, NULL);
	else if (reading->total)
		*reading->total += (uint64_t)n;
}

static void on_exited(uv_process_t *process, int64_t status, int signo)
{
	if (status != 0 || signo != 0)
		bench_fail("uv_spawn", "did not exit with 0");
	uv_close((uv_handle_t *)process, NULL);
}

uint64_t peer_uv(const char *const *argv)
{
	static struct reading readings[2];
	uint64_t total = 0;
	uv_loop_t *loop = uv_default_loop();
	uv_process_t process;
	uv_pipe_t pipes[2];
	uv_stdio_container_t stdio[3] = { { .flags = UV_IGNORE } };
	uv_process_options_t options = {
		.exit_cb = on_exited,
		.file = argv[0],
		.args = (char **)(uintptr_t)argv,
		.stdio_count = 3,
		.stdio = stdio,
	};
	int r;

	readings[0].total = &total;
	for (int i = 0; i < 2; i++) {
		uv_pipe_init(loop, &pipes[i], 0);
		pipes[i].data = &readings[i];
		stdio[i + 1].flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE;
		stdio[i + 1].data.stream = (uv_stream_t *)&pipes[i];
	}
	r = uv_spawn(loop, &process, &options);
	for (int i = 0; i < 2 && r == 0; i++)
		r = uv_read_start((uv_stream_t *)&pipes[i], on_alloc, on_read);
	if (r < 0)
		bench_fail("uv_spawn", uv_strerror(r));
	uv_run(loop, UV_RUN_DEFAULT);
	return total;
}
