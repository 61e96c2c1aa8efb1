/* SPDX-License-Identifier: MIT */
/* A program with a GLib main loop: the library has a thread of its own, and what it says comes
 * to the main context. Meanwhile a GLib timer goes on. Ctrl-C cancels the command.
 * cc glib.c $(pkg-config --cflags --libs glib-2.0 agentd) */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include <glib-unix.h>
#include <glib.h>

#include <agentd/agentd.h>

/* What belongs to the thread that runs the loop, and to nobody else. */
struct engine {
	GThread *thread;
	GAsyncQueue *calls; /* struct call, for that thread */
	agentd_loop *loop;
	agentd_runner *runner;
	agentd_policy *policy;
	bool gone;
};

struct command {
	struct engine *engine;
	GMainLoop *main_loop;
	char *script;
	agentd_exec *exec; /* of the engine's thread */
	int status;
	unsigned int ticks;
};

struct call {
	void (*fn)(struct command *command);
	struct command *command;
};

/* err by its address: arguments have no order, and rc is what sets it. */
static void must(int rc, agentd_error **err)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "glib: %s\n",
		err && *err ? agentd_error_message(*err) : agentd_strerror(rc));
	exit(1);
}

/* ---- in the main context */

struct chunk {
	FILE *to;
	GBytes *bytes;
};

static gboolean show_chunk(gpointer data)
{
	struct chunk *chunk = data;
	gsize len;
	gconstpointer bytes = g_bytes_get_data(chunk->bytes, &len);

	fwrite(bytes, 1, len, chunk->to);
	fflush(chunk->to);
	g_bytes_unref(chunk->bytes);
	g_free(chunk);
	return G_SOURCE_REMOVE;
}

static gboolean show_end(gpointer data)
{
	struct command *command = data;

	g_main_loop_quit(command->main_loop);
	return G_SOURCE_REMOVE;
}

static gboolean tick(gpointer data)
{
	((struct command *)data)->ticks++;
	return G_SOURCE_CONTINUE;
}

/* ---- in the engine's thread: what the library calls */

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct chunk *chunk = g_new(struct chunk, 1);

	(void)exec, (void)userdata;
	chunk->to = stream == AGENTD_STDOUT ? stdout : stderr;
	chunk->bytes = g_bytes_new(data, len);
	g_main_context_invoke(NULL, show_chunk, chunk);
	return AGENTD_SINK_CONTINUE;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct command *command = userdata;

	command->status = agentd_result_status(result);
	if (agentd_result_error(result))
		fprintf(stderr, "glib: %s\n", agentd_error_message(agentd_result_error(result)));
	command->exec = NULL;
	agentd_exec_unref(exec);
	g_main_context_invoke(NULL, show_end, command);
}

static void on_gone(agentd_runner *runner, void *userdata)
{
	struct engine *engine = userdata;

	(void)runner;
	engine->gone = true;
	agentd_loop_wakeup(engine->loop);
}

/* ---- in the engine's thread: what it is asked to do */

static void start_command(struct command *command)
{
	struct agentd_sink_ops ops = { .size = sizeof(ops),
				       .output = on_output,
				       .finished = on_finished };
	agentd_context *ctx = NULL;
	agentd_params *params = NULL;
	agentd_sink *sink = NULL;
	agentd_error *err = NULL;
	char *here = g_get_current_dir();

	must(agentd_context_new(&ctx, &err), &err);
	must(agentd_context_set_policy(ctx, command->engine->policy, &err), &err);
	must(agentd_context_set_workdir(ctx, here, &err), &err);
	g_free(here);
	must(agentd_params_new_shell(command->script, 30000, &params, &err), &err);
	must(agentd_sink_new(&ops, command, &sink, &err), &err);
	must(agentd_exec_start(command->engine->runner, ctx, params, sink, NULL, &command->exec,
			       &err),
	     &err);
	agentd_sink_unref(sink);
	agentd_params_unref(params);
	agentd_context_unref(ctx);
}

static void cancel_command(struct command *command)
{
	if (command->exec)
		agentd_exec_cancel(command->exec);
}

static void shut_down(struct command *command)
{
	must(agentd_runner_shutdown(command->engine->runner, 1000, on_gone, command->engine), NULL);
}

static gpointer engine_main(gpointer data)
{
	struct engine *engine = data;
	struct agentd_runner_opts opts = { .size = sizeof(opts) };
	agentd_error *err = NULL;

	must(agentd_policy_new(&engine->policy, &err), &err);
	must(agentd_policy_allow_path(engine->policy, "/usr",
				      AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, &err),
	     &err);
	opts.event_base = agentd_loop_event_base(engine->loop);
	opts.policy = engine->policy;
	must(agentd_runner_new(&opts, &engine->runner, &err), &err);
	while (!engine->gone) {
		struct call *call;

		while ((call = g_async_queue_try_pop(engine->calls))) {
			call->fn(call->command);
			g_free(call);
		}
		must(agentd_loop_run(engine->loop, -1, &err), &err);
	}
	agentd_runner_unref(engine->runner);
	agentd_policy_unref(engine->policy);
	return NULL;
}

/* ---- from any thread */

static void ask(struct command *command, void (*fn)(struct command *command))
{
	struct call *call = g_new(struct call, 1);

	*call = (struct call){ fn, command };
	g_async_queue_push(command->engine->calls, call);
	/* One that comes before the loop runs makes it return at once. */
	agentd_loop_wakeup(command->engine->loop);
}

static gboolean on_interrupt(gpointer data)
{
	ask(data, cancel_command);
	return G_SOURCE_CONTINUE;
}

int main(int argc, char **argv)
{
	struct engine engine = { .calls = g_async_queue_new() };
	struct command command = { .engine = &engine,
				   .script = argc > 1 ? argv[1] : (char[]){ "echo hello" },
				   .main_loop = g_main_loop_new(NULL, FALSE) };
	agentd_error *err = NULL;

	must(agentd_loop_new(&engine.loop, &err), &err);
	engine.thread = g_thread_new("agentd", engine_main, &engine);
	g_unix_signal_add(SIGINT, on_interrupt, &command);
	g_timeout_add(10, tick, &command);
	ask(&command, start_command);
	g_main_loop_run(command.main_loop);

	ask(&command, shut_down);
	g_thread_join(engine.thread);
	agentd_loop_unref(engine.loop);
	g_async_queue_unref(engine.calls);
	g_main_loop_unref(command.main_loop);
	printf("%s, and the timer came %u times\n", agentd_status_name(command.status),
	       command.ticks);
	return command.status == AGENTD_STATUS_OK ? 0 : 1;
}
