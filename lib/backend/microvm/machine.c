/* SPDX-License-Identifier: MIT */
/* One virtual machine, from its monitor's start until nothing is left of it:
 *
 *   timing -> booting -------------------> setting up -> ready -> ending
 *          -> waiting for a template -> restoring ->
 *                                       -> spare -> restoring ->
 *
 * and one that becomes a template: booting -> settling -> saving -> ready, where it stands
 * still. Where KVM is to be tried, a boot that fails is done again without it; one that cannot
 * go on from its template boots. Whatever goes
 * wrong ends in fail(), which keeps the reason and kills the monitor; only the monitor's
 * death, or that there was none, is the end. */
#include "backend/microvm/private.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include <agentd/backend.h>

/* A boot takes 0.1 s under KVM and 2 s under TCG; with both processors loaded 8 s, and
 * with twenty who want them more than 30 s. */
static const uint64_t boot_kvm_ns = 5000 * AD_NS_PER_MS, boot_tcg_ns = 60000 * AD_NS_PER_MS;
static const uint64_t setup_ns = 15000 * AD_NS_PER_MS;
/* The guest's clock is wrong by what a set-up's way there took, at most: one that took
 * longer, as the mounting of a volume does, is followed by another for the clock alone. */
static const uint64_t clock_ns = 30 * AD_NS_PER_MS;
enum { SETUPS_MAX = 4 };
/* For a monitor whose guest has powered off, to end by itself. */
static const uint64_t end_ns = 2000 * AD_NS_PER_MS;
/* Over 20 ms the rate of the time-stamp counter comes out to 1 in 10,000 (measured). */
static const uint64_t timing_ns = 20 * AD_NS_PER_MS;

/* A clone runs after 0.1 s. */
static const uint64_t restore_ns = 10000 * AD_NS_PER_MS;
/* For the agent to settle: what it runs to that end takes it 5 s at most. */
static const uint64_t save_ns = 20000 * AD_NS_PER_MS;
/* Beside the grace of a stop: for the kernel to write what it has. */
static const uint64_t unmount_ns = 3000 * AD_NS_PER_MS;

enum state {
	TIMING,
	WAITING,
	BOOTING,
	RESTORING,
	SPARE,
	SETTLING,
	SAVING,
	SETTING_UP,
	READY,
	ENDING
};

enum { READ_SIZE = 64 * 1024, READS_PER_WAKE = 4 };

/* QEMU is told its memory in MiB; that of a snapshot has to be just that. */
#define MEMORY_UNIT (UINT64_C(1) << 20)

struct machine {
	struct microvm *vm;
	const struct machine_events *events;
	void *userdata;
	struct machine_facts facts;
	struct image image;
	const struct image *boots; /* that, or its template's */
	uint64_t memory_bytes;
	bool require_kvm, trial; /* the first boot under KVM here */
	bool spare;
	enum engine_use use;
	int memory, state_fd; /* of ENGINE_TEMPLATE; borrowed */
	const struct machine_volume *volume;
	struct template_watch watch;
	struct template *template; /* it goes on from, or -- once it runs -- went on from */
	struct ad_buf hello;       /* what came while it booted */
	uint64_t setup_at;         /* when SETUP was sent */
	unsigned int setups;       /* how often */
	bool stopping;
	enum state state;
	uint64_t began_ns;
	struct engine *engine;
	struct ad_guest_link *link;
	int fd; /* our end of the channel, or -1 */
	struct ad_io readable, writable;
	bool writing, feeding, hung_up; /* the agent's end of the channel is closed */
	struct ad_timer timer;
	struct ad_defer over; /* there was no monitor whose death would be the end */
	agentd_error *err;    /* why it ends */
};

static struct ad_loop *loop_of(const struct machine *machine)
{
	return ad_launcher_loop(machine->vm->launcher);
}

/* ---- the end */

static void close_channel(struct machine *machine)
{
	if (machine->fd < 0)
		return;
	ad_io_stop(&machine->readable);
	ad_io_stop(&machine->writable);
	close(ad_steal_fd(&machine->fd));
}

/* Takes err. Later reasons follow from the first. */
static void keep_err(struct machine *machine, agentd_error *err)
{
	if (machine->err)
		agentd_error_unref(err);
	else
		machine->err = err;
}

/* Takes err. */
static void fail(struct machine *machine, agentd_error *err)
{
	keep_err(machine, err);
	if (machine->state == ENDING)
		return;
	machine->state = ENDING;
	ad_timer_stop(&machine->timer);
	template_unwatch(&machine->watch);
	/* The agent powers off when its channel closes; a monitor is not asked. */
	ad_io_stop(&machine->readable);
	ad_io_stop(&machine->writable);
	if (machine->engine)
		machine->vm->engine->kill(machine->engine);
	else
		ad_defer(&machine->over);
}

static void fail_text(struct machine *machine, int code, const char *text)
{
	fail(machine, agentd_error_create(code, 0, text));
}

static void report_over(struct ad_defer *defer, void *userdata)
{
	struct machine *machine = userdata;

	(void)defer;
	machine->events->died(machine, AD_STEAL(machine->err), machine->userdata);
}

static void boot(struct machine *machine);
static void restore_failed(struct machine *machine, agentd_error *err);

/* KVM did not boot what TCG boots. */
static void trial_failed(struct machine *machine, const char *why)
{
	ad_autobuf struct ad_buf text = { 0 };

	ad_buf_printf(&text, "the kernel does not boot under it here (%s)", why);
	accel_learn(machine->vm, false, text.failed ? "it does not boot" : text.data);
	machine->trial = false;
	machine->vm->engine->free(AD_STEAL(machine->engine));
	close_channel(machine);
	machine->facts.accel = ACCEL_TCG;
	if (machine->require_kvm) {
		text.len = 0;
		ad_buf_printf(&text, "the policy requires KVM: %s",
			      machine->vm->kvm_reason.data ? machine->vm->kvm_reason.data : why);
		machine->state = ENDING;
		agentd_error_unref(machine->err); /* why may be of it */
		machine->err = agentd_error_create(AGENTD_ERR_UNSUPPORTED, 0, text.data);
		ad_defer(&machine->over);
		return;
	}
	agentd_error_unref(AD_STEAL(machine->err));
	machine->state = BOOTING;
	boot(machine);
}

/* Whether a trial that ended so says something of KVM, and not of what we lack. */
static bool tells_of_kvm(const agentd_error *err)
{
	int code = agentd_error_code(err);

	return code == AGENTD_ERR_BACKEND || code == AGENTD_ERR_TIMEOUT;
}

static void engine_died(struct engine *engine, bool ran, agentd_error *err, void *userdata)
{
	struct machine *machine = userdata;

	(void)engine;
	if (machine->state == RESTORING && !machine->spare) {
		if (machine->err) {
			agentd_error_unref(err);
			err = AD_STEAL(machine->err);
		}
		restore_failed(machine, err);
		return;
	}
	if (machine->trial && ran && tells_of_kvm(machine->err ? machine->err : err)) {
		trial_failed(machine, agentd_error_message(machine->err ? machine->err : err));
		agentd_error_unref(err);
		return;
	}
	keep_err(machine, err);
	machine->state = ENDING;
	ad_timer_stop(&machine->timer);
	close_channel(machine);
	machine->events->died(machine, AD_STEAL(machine->err), machine->userdata);
}

/* It does not go on from its template as it should: its death is what ends that. Takes err. */
static void end_restoring(struct machine *machine, agentd_error *err)
{
	keep_err(machine, err);
	ad_timer_stop(&machine->timer);
	ad_io_stop(&machine->readable);
	ad_io_stop(&machine->writable);
	machine->vm->engine->kill(machine->engine);
}

/* The same, or all of it. Takes err. */
static void end_for(struct machine *machine, agentd_error *err)
{
	if (machine->state == RESTORING)
		end_restoring(machine, err);
	else
		fail(machine, err);
}

/* What is logged of a machine that is not its agent's. */
static void log_own(struct machine *machine, const char *text)
{
	struct ad_guest_msg log = { .type = AD_GUEST_LOG };

	log.u.log.level = AGENTD_LOG_WARN;
	log.u.log.text = text;
	machine->events->message(machine, &log, machine->userdata);
}

static void begin(struct machine *machine);

static void timer_fired(struct ad_timer *timer, void *userdata)
{
	struct machine *machine = userdata;

	(void)timer;
	if (machine->hung_up) {
		end_for(machine, agentd_error_create(AGENTD_ERR_BACKEND, 0,
						     "the guest agent closed its channel"));
		return;
	}
	switch (machine->state) {
	case TIMING:
		begin(machine);
		break;
	case RESTORING:
		end_restoring(machine, agentd_error_create(AGENTD_ERR_TIMEOUT, 0,
							   "its guest did not answer within 10 s"));
		break;
	case SETTLING:
	case SAVING:
		fail_text(machine, AGENTD_ERR_TIMEOUT, "no snapshot could be taken within 20 s");
		break;
	case READY:
		log_own(machine, "The virtual machine did not stop in time and was killed: what it "
				 "had not written to its disk is lost");
		machine_kill(machine);
		break;
	case BOOTING:
		fail_text(machine, AGENTD_ERR_TIMEOUT,
			  machine->facts.accel == ACCEL_KVM ?
				  "the virtual machine did not boot within 5 s" :
				  "the virtual machine did not boot within 60 s; "
				  "scripts/build-image --check tells whether the image is sound");
		break;
	case SETTING_UP:
		fail_text(machine, AGENTD_ERR_TIMEOUT,
			  "the guest agent did not set itself up within 15 s");
		break;
	default:
		break;
	}
}

/* ---- the channel */

/* Nobody else would hear of it. */
static void notice_starved(struct machine *machine)
{
	if (ad_guest_link_starved(machine->link))
		fail(machine, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
}

static void write_out(struct machine *machine)
{
	for (;;) {
		size_t len;
		const uint8_t *data = ad_guest_link_peek(machine->link, &len);
		ssize_t n;

		if (len == 0)
			break;
		n = send(machine->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			/* Of one that is closed reading tells. */
			if (errno != EPIPE && errno != ECONNRESET)
				fail(machine, agentd_error_create(
						      AGENTD_ERR_SYSTEM, errno,
						      "the guest agent's channel takes nothing"));
			break;
		}
		ad_guest_link_sent(machine->link, (size_t)n);
	}
	ad_io_stop(&machine->writable);
	machine->writing = false;
	notice_starved(machine);
}

static void on_writable(struct ad_io *io, void *userdata)
{
	(void)io;
	write_out(userdata);
}

/* From the loop, or at the end of what is being read. */
static void write_soon(struct machine *machine)
{
	if (machine->writing || machine->feeding || machine->fd < 0 || machine->err)
		return;
	if (ad_io_start(&machine->writable) < 0)
		fail(machine, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
	else
		machine->writing = true;
}

static void channel_ended(struct machine *machine)
{
	machine->hung_up = true;
	ad_io_stop(&machine->readable);
	ad_io_stop(&machine->writable);
	/* What the monitor has to say comes with its death. */
	if (ad_timer_start(&machine->timer, end_ns) < 0)
		fail_text(machine, AGENTD_ERR_BACKEND, "the guest agent closed its channel");
}

static void feed(struct machine *machine, const uint8_t *data, size_t len)
{
	ad_autobuf struct ad_buf text = { 0 };

	machine->feeding = true;
	if (!ad_guest_link_feed(machine->link, data, len) &&
	    !ad_guest_link_starved(machine->link)) {
		ad_buf_printf(&text, "the guest agent broke the protocol: %s%s",
			      ad_guest_link_error(machine->link),
			      machine->state == BOOTING ?
				      "; scripts/build-image makes an image that fits this "
				      "library" :
				      "");
		end_for(machine, agentd_error_create(AGENTD_ERR_PROTOCOL, 0, text.data));
	}
	machine->feeding = false;
	notice_starved(machine);
}

static void on_readable(struct ad_io *io, void *userdata)
{
	struct machine *machine = userdata;
	uint8_t buf[READ_SIZE];

	(void)io;
	for (int i = 0; i < READS_PER_WAKE && !machine->err; i++) {
		ssize_t n = read(machine->fd, buf, sizeof(buf));

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n <= 0) {
			channel_ended(machine);
			return;
		}
		if (machine->use == ENGINE_TEMPLATE && machine->state == BOOTING)
			ad_buf_append(&machine->hello, buf, (size_t)n);
		feed(machine, buf, (size_t)n);
	}
	if (!machine->err)
		write_soon(machine);
}

/* ---- what the agent says first */

static void send_setup(struct machine *machine)
{
	const struct machine_volume *volume = machine->setups == 0 ? machine->volume : NULL;
	struct ad_guest_msg setup = {
		.type = AD_GUEST_SETUP,
		.u.setup = { .volume = volume ? volume->path : "",
			     .uid = volume ? volume->uid : 0,
			     .gid = volume ? volume->gid : 0 },
	};
	struct timespec now;

	/* Nothing has run that could have wanted either. */
	if (getrandom(setup.u.setup.seed, sizeof(setup.u.setup.seed), 0) !=
	    sizeof(setup.u.setup.seed)) {
		fail_text(machine, AGENTD_ERR_SYSTEM, "no random seed for the virtual machine");
		return;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	setup.u.setup.realtime_ns = (uint64_t)now.tv_sec * 1000 * AD_NS_PER_MS +
				    (uint64_t)now.tv_nsec;
	machine->state = SETTING_UP;
	machine->setups++;
	machine->setup_at = ad_sys_now_ns();
	if (!ad_guest_link_send(machine->link, &setup) ||
	    ad_timer_start(&machine->timer, setup_ns) < 0)
		fail(machine, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
}

/* The agent answers when it has nothing more to do until it is told. */
static void settle(struct machine *machine)
{
	const struct ad_guest_msg warm = { .type = AD_GUEST_WARM },
				  ping = { .type = AD_GUEST_PING };

	machine->state = SETTLING;
	if (!ad_guest_link_send(machine->link, &warm) ||
	    !ad_guest_link_send(machine->link, &ping) ||
	    ad_timer_start(&machine->timer, save_ns) < 0)
		fail(machine, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
}

/* Under emulation the first message takes a clone long: it is not to be the one that has the
 * time in it. And one that does not answer is none. A spare has the time to translate what a
 * command will run, which nothing is left of but that. */
static void wake(struct machine *machine)
{
	const struct ad_guest_msg warm = { .type = AD_GUEST_WARM },
				  ping = { .type = AD_GUEST_PING };

	if ((machine->spare && !ad_guest_link_send(machine->link, &warm)) ||
	    !ad_guest_link_send(machine->link, &ping))
		fail(machine, agentd_error_create(AGENTD_ERR_NOMEM, 0, NULL));
}

static void save(struct machine *machine)
{
	agentd_error *err = NULL;

	machine->state = SAVING;
	if (machine->vm->engine->save(machine->engine, machine->state_fd, &err) < 0)
		fail(machine, err);
}

/* Cut where a character ends. */
static void keep_kernel(struct machine_facts *facts, const char *name)
{
	size_t len = strnlen(name, sizeof(facts->kernel) - 1);

	while (!ad_utf8_valid(name, len))
		len--;
	memcpy(facts->kernel, name, len);
	facts->kernel[len] = '\0';
}

static void on_hello(struct machine *machine, const struct ad_guest_msg *msg)
{
	uint64_t took = ad_sys_now_ns() - machine->began_ns;

	if (machine->trial) {
		machine->trial = false;
		accel_learn(machine->vm, true, "");
	}
	if (machine->template) {
		machine->facts.restore_ns = took;
		machine->facts.boot_ns = template_facts(machine->template)->boot_ns;
	} else {
		machine->facts.boot_ns = took;
	}
	machine->facts.memory_bytes = msg->u.hello.memory_bytes;
	keep_kernel(&machine->facts, msg->u.hello.kernel);
	if (machine->use == ENGINE_TEMPLATE)
		settle(machine);
	else if (machine->template)
		wake(machine);
	else
		send_setup(machine);
}

static void attach(struct machine *machine)
{
	agentd_error *err = NULL;

	if (machine->vm->engine->attach(machine->engine, machine->volume->fd,
					machine->volume->bytes, &err) < 0)
		end_restoring(machine, err);
}

static void on_awake(struct machine *machine)
{
	if (machine->volume) {
		attach(machine);
	} else if (machine->spare) {
		ad_timer_stop(&machine->timer);
		machine->state = SPARE;
		machine->events->ready(machine, machine->userdata);
	} else {
		send_setup(machine);
	}
}

static void on_set_up(struct machine *machine, const struct ad_guest_msg *msg)
{
	ad_autobuf struct ad_buf text = { 0 };

	if (msg->u.ready.os_errno == 0) {
		if (ad_sys_now_ns() - machine->setup_at > clock_ns &&
		    machine->setups < SETUPS_MAX) {
			send_setup(machine);
			return;
		}
		ad_timer_stop(&machine->timer);
		machine->state = READY;
		if (machine->template)
			template_works(machine->template);
		machine->events->ready(machine, machine->userdata);
		return;
	}
	ad_buf_printf(&text, "the guest agent could not set itself up: %s: %s", msg->u.ready.text,
		      strerror(msg->u.ready.os_errno));
	if (machine->volume && strstr(msg->u.ready.text, "volume"))
		ad_buf_printf(&text,
			      "; its disk is the file %s: \"e2fsck -f\" of it tells whether it is "
			      "damaged",
			      machine->volume->file);
	fail(machine, agentd_error_create(AGENTD_ERR_BACKEND, 0, text.data));
}

static void on_message(const struct ad_guest_msg *msg, void *userdata)
{
	struct machine *machine = userdata;

	if (machine->state == ENDING)
		return;
	if (msg->type == AD_GUEST_HELLO)
		on_hello(machine, msg);
	else if (msg->type == AD_GUEST_READY)
		on_set_up(machine, msg);
	else if (msg->type == AD_GUEST_PONG && machine->state == SETTLING)
		save(machine);
	else if (msg->type == AD_GUEST_PONG && machine->state == RESTORING)
		on_awake(machine);
	else
		machine->events->message(machine, msg, machine->userdata);
}

static void on_link_writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	struct machine *machine = userdata;

	if (machine->state == READY)
		machine->events->writable(machine, id, stream, machine->userdata);
}

static void on_connection_writable(uint32_t id, uint16_t connection, void *userdata)
{
	struct machine *machine = userdata;

	if (machine->state == READY)
		machine->events->connection_writable(machine, id, connection, machine->userdata);
}

static const struct ad_guest_link_events link_events = {
	.message = on_message,
	.writable = on_link_writable,
	.connection_writable = on_connection_writable,
};

/* ---- booting */

static void engine_started(struct engine *engine, int32_t pid,
			   const struct ad_launch_receipt *receipt, void *userdata)
{
	struct machine *machine = userdata;

	(void)engine;
	machine->facts.pid = pid;
	machine->facts.uid = receipt->uid;
	machine->facts.landlock_abi = receipt->landlock_abi;
}

static void engine_migrated(struct engine *engine, void *userdata)
{
	struct machine *machine = userdata;

	(void)engine;
	if (machine->state == SAVING) {
		ad_timer_stop(&machine->timer);
		machine->state = READY;
		machine->events->ready(machine, machine->userdata);
	} else if (machine->state == RESTORING && !machine->err) {
		const struct ad_buf *hello = template_facts(machine->template)->hello;

		/* It has said that before it was copied. */
		feed(machine, (const uint8_t *)hello->data, hello->len);
		if (!machine->err)
			write_soon(machine);
	}
}

static void engine_attached(struct engine *engine, void *userdata)
{
	struct machine *machine = userdata;

	(void)engine;
	if (machine->state != RESTORING || machine->err)
		return;
	send_setup(machine);
	write_soon(machine);
}

static const struct engine_events engine_events = {
	.started = engine_started,
	.migrated = engine_migrated,
	.attached = engine_attached,
	.died = engine_died,
};

/* Ticks of the time-stamp counter in a millisecond; 0 where there is none. */
static uint64_t tsc_khz(const struct microvm *vm)
{
#if defined(__x86_64__)
	uint64_t ns = ad_sys_now_ns() - vm->first_ns, ticks = __rdtsc() - vm->first_tsc;

	return (uint64_t)((double)ticks * 1e6 / (double)ns);
#else
	(void)vm;
	return 0;
#endif
}

static int start_engine(struct machine *machine, int channel, agentd_error **reterr)
{
	const struct microvm *vm = machine->vm;
	const struct machine_volume *volume = machine->volume;
	const struct template_facts *from = machine->template ? template_facts(machine->template) :
								NULL;
	const struct engine_config config = {
		.launcher = vm->launcher,
		.program = vm->monitor,
		.image = machine->boots,
		.use = from ? ENGINE_CLONE : machine->use,
		.accel = machine->facts.accel,
		.memory_bytes = machine->memory_bytes,
		.tsc_khz = machine->facts.accel == ACCEL_TCG ? tsc_khz(vm) : 0,
		.channel = channel,
		.memory = from ? from->memory : machine->memory,
		.state = from ? from->state : machine->state_fd,
		.volume = volume ? volume->fd : -1,
		.uid = vm->uid,
		.gid = vm->gid,
	};

	return vm->engine->start(&config, &engine_events, machine, &machine->engine, reterr);
}

static int try_start(struct machine *machine, uint64_t within_ns, agentd_error **reterr)
{
	ad_autoclose int theirs = -1;
	int ends[2], r;

	ad_guest_link_free(machine->link);
	machine->link = ad_guest_link_new(AD_GUEST_HOST, &link_events, machine);
	if (!machine->link)
		return ad_fail_nomem(reterr);
	/* An attempt before may have left something in it. */
	if (machine->use == ENGINE_TEMPLATE) {
		r = ad_sys_truncate_nosignal(machine->memory, 0);
		if (r == 0)
			r = ad_sys_truncate_nosignal(machine->memory, (off_t)machine->memory_bytes);
		if (r < 0)
			return ad_fail_errno(reterr, -r, "the virtual machine's memory");
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return ad_fail_errno(reterr, errno, "no channel for the virtual machine");
	machine->fd = ad_sys_high_fd(ends[0]);
	theirs = ad_sys_high_fd(ends[1]);
	r = machine->fd < 0 ? machine->fd : theirs < 0 ? theirs : ad_sys_set_nonblock(machine->fd);
	if (r < 0)
		return ad_fail_errno(reterr, -r, "no channel for the virtual machine");
	machine->writing = machine->hung_up = false;
	machine->setups = 0;
	machine->hello.len = 0;
	ad_io_init(&machine->readable, loop_of(machine), machine->fd, AD_IO_READ, on_readable,
		   machine);
	ad_io_init(&machine->writable, loop_of(machine), machine->fd, AD_IO_WRITE, on_writable,
		   machine);
	if (ad_io_start(&machine->readable) < 0 || ad_timer_start(&machine->timer, within_ns) < 0)
		return ad_fail_nomem(reterr);
	machine->began_ns = ad_sys_now_ns();
	return start_engine(machine, theirs, reterr);
}

static void boot(struct machine *machine)
{
	agentd_error *err = NULL;

	if (try_start(machine, machine->facts.accel == ACCEL_KVM ? boot_kvm_ns : boot_tcg_ns,
		      &err) < 0)
		fail(machine, err);
}

/* ---- KVM or TCG */

static int choose_accel(struct machine *machine, agentd_error **reterr)
{
	const struct microvm *vm = machine->vm;

	machine->trial = vm->kvm == KVM_UNKNOWN;
	machine->facts.accel = vm->kvm == KVM_UNUSABLE ? ACCEL_TCG : ACCEL_KVM;
	if (machine->require_kvm && vm->kvm == KVM_UNUSABLE)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL, "the policy requires KVM: %s",
			       vm->kvm_reason.data);
	return 0;
}

/* ---- going on from a template */

/* why: there is no other way, though one was wanted. */
static void begin_booting(struct machine *machine, const agentd_error *why)
{
	ad_autobuf struct ad_buf text = { 0 };
	agentd_error *err = NULL;

	if (machine->spare) {
		fail(machine, why ? agentd_error_ref((agentd_error *)(uintptr_t)why) :
				    agentd_error_create(AGENTD_ERR_UNSUPPORTED, 0,
							"there is no snapshot to go on from"));
		return;
	}
	if (why) {
		ad_buf_printf(&text,
			      "A virtual machine is booted, as it could not go on from a "
			      "snapshot: %s",
			      agentd_error_message(why));
		log_own(machine, text.failed ? "" : text.data);
	}
	machine->state = BOOTING;
	/* What the template's boot has found out holds for this one too. */
	if (choose_accel(machine, &err) < 0)
		fail(machine, err);
	else
		boot(machine);
}

/* Takes err. */
static void restore_failed(struct machine *machine, agentd_error *err)
{
	machine->vm->engine->free(AD_STEAL(machine->engine));
	close_channel(machine);
	template_broken(machine->template, agentd_error_ref(err));
	template_unref(AD_STEAL(machine->template));
	machine->boots = &machine->image;
	begin_booting(machine, err);
	agentd_error_unref(err);
}

static void template_known(struct template_watch *watch, struct template *template,
			   const agentd_error *err, bool bootable)
{
	struct machine *machine = AD_CONTAINER_OF(watch, struct machine, watch);
	agentd_error *own = NULL;

	if (!template && !bootable) {
		fail(machine, agentd_error_ref((agentd_error *)(uintptr_t)err));
		return;
	}
	/* One may have been made before KVM could be used. */
	if (!template || (machine->require_kvm && template_facts(template)->accel != ACCEL_KVM)) {
		begin_booting(machine, err);
		return;
	}
	if (choose_accel(machine, &own) < 0) {
		fail(machine, own);
		return;
	}
	machine->trial = false;
	machine->state = RESTORING;
	machine->template = template_ref(template);
	machine->boots = template_facts(template)->image;
	machine->facts.accel = template_facts(template)->accel;
	if (try_start(machine, restore_ns, &own) < 0)
		fail(machine, own);
}

static void begin(struct machine *machine)
{
	agentd_error *err = NULL;

	if (!machine->watch.known) {
		begin_booting(machine, NULL);
		return;
	}
	machine->state = WAITING;
	if (template_watch(machine->vm, &machine->image, machine->memory_bytes, &machine->watch,
			   &err) < 0)
		fail(machine, err);
}

/* ---- making one */

static struct machine *machine_create(struct microvm *vm, const struct machine_events *events,
				      void *userdata)
{
	struct machine *machine = calloc(1, sizeof(*machine));

	if (!machine)
		return NULL;
	machine->vm = vm;
	machine->events = events;
	machine->userdata = userdata;
	machine->fd = machine->memory = machine->state_fd = -1;
	machine->image = IMAGE_NONE;
	machine->boots = &machine->image;
	ad_timer_init(&machine->timer, loop_of(machine), timer_fired, machine);
	ad_defer_init(&machine->over, loop_of(machine), report_over, machine);
	return machine;
}

static uint64_t memory_of(const struct machine_config *config)
{
	return config->memory_bytes / MEMORY_UNIT * MEMORY_UNIT;
}

/* Not before the rate of the time-stamp counter can be told. */
static int start_timing(struct machine *machine, agentd_error **reterr)
{
	uint64_t known_for = ad_sys_now_ns() - machine->vm->first_ns;

	return ad_timer_start(&machine->timer, known_for < timing_ns ? timing_ns - known_for : 0) <
			       0 ?
		       ad_fail_nomem(reterr) :
		       0;
}

int machine_new(struct microvm *vm, const struct machine_config *config,
		const struct machine_events *events, void *userdata, struct machine **ret,
		agentd_error **reterr)
{
	struct machine *machine = machine_create(vm, events, userdata);
	int r;

	if (!machine)
		return ad_fail_nomem(reterr);
	machine->memory_bytes = memory_of(config);
	machine->require_kvm = config->require_kvm;
	machine->spare = config->spare;
	machine->volume = config->volume;
	machine->watch.known = config->from_template ? template_known : NULL;
	r = choose_accel(machine, reterr);
	if (r == 0)
		r = image_open(vm->image_dir, config->root, &machine->image, reterr);
	if (r == 0)
		r = start_timing(machine, reterr);
	if (r < 0)
		machine_free(machine);
	else
		*ret = machine;
	return r;
}

int machine_new_template(struct microvm *vm, const struct image *image, uint64_t memory_bytes,
			 int memory, int state, const struct machine_events *events, void *userdata,
			 struct machine **ret, agentd_error **reterr)
{
	struct machine *machine = machine_create(vm, events, userdata);

	if (!machine || start_timing(machine, NULL) < 0) {
		machine_free(machine);
		return ad_fail_nomem(reterr);
	}
	machine->use = ENGINE_TEMPLATE;
	machine->memory_bytes = memory_bytes;
	machine->boots = image;
	machine->memory = memory;
	machine->state_fd = state;
	*ret = machine;
	return 0;
}

bool machine_fits(const struct machine *machine, const struct machine_config *config)
{
	struct image image;
	bool fits;

	if (machine->state != SPARE || machine->memory_bytes != memory_of(config) ||
	    (config->require_kvm && machine->facts.accel != ACCEL_KVM) ||
	    image_open(machine->vm->image_dir, config->root, &image, NULL) < 0)
		return false;
	fits = image_same(&image, &machine->image);
	image_close(&image);
	return fits;
}

int machine_go_on(struct machine *machine, const struct machine_volume *volume,
		  agentd_error **reterr)
{
	int r;

	if (machine->err || machine->hung_up)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the virtual machine has ended");
	if (ad_timer_start(&machine->timer, restore_ns) < 0)
		return ad_fail_nomem(reterr);
	r = machine->vm->engine->attach(machine->engine, volume->fd, volume->bytes, reterr);
	if (r < 0)
		return r;
	machine->volume = volume;
	machine->state = RESTORING;
	machine->began_ns = ad_sys_now_ns();
	return 0;
}

const struct ad_buf *machine_hello(const struct machine *machine)
{
	return &machine->hello;
}

const struct machine_facts *machine_facts(const struct machine *machine)
{
	return &machine->facts;
}

bool machine_is_up(const struct machine *machine)
{
	return machine->state == READY && !machine->stopping;
}

bool machine_send(struct machine *machine, const struct ad_guest_msg *msg)
{
	bool sent = machine->state == READY && ad_guest_link_send(machine->link, msg);

	if (sent)
		write_soon(machine);
	else if (machine->state == READY)
		notice_starved(machine);
	return sent;
}

bool machine_holds(const struct machine *machine, enum ad_guest_type type, uint32_t id)
{
	return ad_guest_link_holds(machine->link, type, id);
}

size_t machine_data(struct machine *machine, uint32_t id, enum ad_guest_stream stream,
		    const uint8_t *data, size_t len)
{
	size_t taken = 0;

	if (machine->state == READY)
		taken = ad_guest_link_data(machine->link, id, stream, data, len);
	if (taken > 0)
		write_soon(machine);
	if (machine->state == READY)
		notice_starved(machine);
	return taken;
}

void machine_taken(struct machine *machine, uint32_t id, enum ad_guest_stream stream, size_t len)
{
	if (machine->state != READY)
		return;
	ad_guest_link_taken(machine->link, id, stream, len);
	write_soon(machine);
}

size_t machine_connection_room(struct machine *machine, uint32_t id, uint16_t connection)
{
	return machine->state == READY ?
		       ad_guest_link_connection_room(machine->link, id, connection) :
		       0;
}

void machine_connection_data(struct machine *machine, uint32_t id, uint16_t connection,
			     const uint8_t *data, size_t len)
{
	if (machine->state != READY)
		return;
	ad_guest_link_connection_data(machine->link, id, connection, data, len);
	write_soon(machine);
}

void machine_connection_taken(struct machine *machine, uint32_t id, uint16_t connection, size_t len)
{
	if (machine->state != READY)
		return;
	ad_guest_link_connection_taken(machine->link, id, connection, len);
	write_soon(machine);
}

void machine_stop(struct machine *machine, uint32_t grace_ms)
{
	const struct ad_guest_msg stop = { .type = AD_GUEST_STOP, .u.stop.grace_ms = grace_ms };

	if (machine->stopping)
		return;
	machine->stopping = true;
	if (!machine_send(machine, &stop) ||
	    ad_timer_start(&machine->timer, grace_ms * AD_NS_PER_MS + unmount_ns) < 0)
		machine_kill(machine);
}

void machine_kill(struct machine *machine)
{
	/* Asked for, it is no trial that failed. */
	machine->trial = false;
	fail_text(machine, AGENTD_ERR_CANCELED, "the virtual machine was stopped");
}

void machine_free(struct machine *machine)
{
	if (!machine)
		return;
	ad_timer_stop(&machine->timer);
	ad_defer_cancel(&machine->over);
	template_unwatch(&machine->watch);
	close_channel(machine);
	machine->vm->engine->free(machine->engine);
	ad_guest_link_free(machine->link);
	template_unref(machine->template);
	image_close(&machine->image);
	ad_buf_free(&machine->hello);
	agentd_error_unref(machine->err);
	free(machine);
}
