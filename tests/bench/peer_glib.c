/* SPDX-License-Identifier: MIT */
/* GSubprocess and its streams. */
#include "peer.h"

#include <gio/gio.h>

#include "bench.h"

struct reading {
	char buf[256 << 10];
	uint64_t *total; /* NULL: not counted */
	unsigned int *open;
};

static void on_read(GObject *source, GAsyncResult *result, gpointer userdata)
{
	GInputStream *stream = G_INPUT_STREAM(source);
	struct reading *reading = userdata;
	gssize n = g_input_stream_read_finish(stream, result, NULL);

	if (n <= 0) {
		--*reading->open;
		return;
	}
	if (reading->total)
		*reading->total += (uint64_t)n;
	g_input_stream_read_async(stream, reading->buf, sizeof(reading->buf), G_PRIORITY_DEFAULT,
				  NULL, on_read, reading);
}

static void on_exited(GObject *source, GAsyncResult *result, gpointer userdata)
{
	unsigned int *open = userdata;

	if (!g_subprocess_wait_check_finish(G_SUBPROCESS(source), result, NULL))
		bench_fail("GSubprocess", "did not exit with 0");
	--*open;
}

uint64_t peer_glib(const char *const *argv)
{
	static struct reading readings[2];
	unsigned int open = 3;
	uint64_t total = 0;
	GError *error = NULL;
	GSubprocess *process = g_subprocess_newv(argv,
						 G_SUBPROCESS_FLAGS_STDOUT_PIPE |
							 G_SUBPROCESS_FLAGS_STDERR_PIPE,
						 &error);

	if (!process)
		bench_fail("GSubprocess", error->message);
	readings[0].total = &total;
	for (int i = 0; i < 2; i++) {
		GInputStream *stream = i == 0 ? g_subprocess_get_stdout_pipe(process) :
						g_subprocess_get_stderr_pipe(process);

		readings[i].open = &open;
		g_input_stream_read_async(stream, readings[i].buf, sizeof(readings[i].buf),
					  G_PRIORITY_DEFAULT, NULL, on_read, &readings[i]);
	}
	g_subprocess_wait_check_async(process, NULL, on_exited, &open);
	while (open > 0)
		g_main_context_iteration(NULL, TRUE);
	g_object_unref(process);
	return total;
}
