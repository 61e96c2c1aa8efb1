/* SPDX-License-Identifier: MIT */
/* A machine is booted once, up to where its agent waits for its set-up, and frozen: its
 * memory and its state are two files in memory that nobody can write to any more. Others
 * go on from there, each with a copy of what it writes. What must differ between them
 * (random numbers, the time, the volume) comes with their set-up. */
#include "backend/microvm/private.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	/* Each keeps what its machine has touched of its memory, about 100 MiB. */
	TEMPLATES_MAX = 3,
	/* Made one after the other without use: then there is none. */
	TRIES_MAX = 3
};

enum template_state { TEMPLATE_BOOTING, TEMPLATE_READY, TEMPLATE_FAILED, TEMPLATE_BROKEN };

struct template
{
	struct ad_list link; /* of the backend's, the newest last */
	uint32_t refs;
	struct image image;
	uint64_t memory_bytes;
	int memory, state_fd;
	enum template_state state;
	bool saved;
	struct machine *machine; /* while BOOTING */
	struct ad_buf hello;
	struct template_facts facts;
	struct ad_list watches;
	agentd_error *err;  /* why FAILED or BROKEN */
	unsigned int tries; /* since a machine went on from one like it */
};

const struct template_facts *template_facts(const struct template *template)
{
	return &template->facts;
}

struct template *template_ref(struct template *template)
{
	template->refs++;
	return template;
}

/* Nobody will go on from it. */
static void drop_memory(struct template *template)
{
	if (template->memory >= 0)
		close(ad_steal_fd(&template->memory));
	if (template->state_fd >= 0)
		close(ad_steal_fd(&template->state_fd));
}

void template_unref(struct template *template)
{
	if (!template || --template->refs > 0)
		return;
	machine_free(template->machine);
	image_close(&template->image);
	drop_memory(template);
	ad_buf_free(&template->hello);
	agentd_error_unref(template->err);
	free(template);
}

static void forget(struct template *template)
{
	ad_list_remove(&template->link);
	template_unref(template);
}

/* ---- who waits for it */

static void tell(struct template_watch *watch, struct template *template)
{
	template_unwatch(watch);
	watch->known(watch, template->state == TEMPLATE_READY ? template : NULL, template->err,
		     template->state != TEMPLATE_FAILED);
}

static void known_already(struct ad_defer *defer, void *userdata)
{
	struct template_watch *watch = userdata;
	struct template *template = template_ref(watch->template);

	(void)defer;
	tell(watch, template);
	template_unref(template);
}

static void tell_all(struct template *template)
{
	while (!ad_list_empty(&template->watches))
		tell(AD_CONTAINER_OF(template->watches.next, struct template_watch, link),
		     template);
}

void template_unwatch(struct template_watch *watch)
{
	struct template *template = AD_STEAL(watch->template);

	if (!template)
		return;
	ad_list_remove(&watch->link);
	ad_defer_cancel(&watch->known_already);
	template_unref(template);
}

/* ---- its machine */

static void machine_ready(struct machine *machine, void *userdata)
{
	struct template *template = userdata;

	template->saved = true;
	machine_kill(machine);
}

static bool seal(int fd)
{
	return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) ==
	       0;
}

static bool keep(struct template *template)
{
	const struct ad_buf *hello = machine_hello(template->machine);
	const struct machine_facts *facts = machine_facts(template->machine);

	if (!template->saved || hello->failed || !seal(template->memory) ||
	    !seal(template->state_fd) || !ad_buf_append(&template->hello, hello->data, hello->len))
		return false;
	template->facts = (struct template_facts){ .image = &template->image,
						   .memory = template->memory,
						   .state = template->state_fd,
						   .accel = facts->accel,
						   .boot_ns = facts->boot_ns,
						   .hello = &template->hello };
	return true;
}

static void machine_died(struct machine *machine, agentd_error *err, void *userdata)
{
	struct template *template = userdata;
	bool booted = machine_facts(machine)->boot_ns > 0;

	if (keep(template))
		template->state = TEMPLATE_READY;
	else
		template->state = booted ? TEMPLATE_BROKEN : TEMPLATE_FAILED;
	if (template->state != TEMPLATE_READY) {
		drop_memory(template);
		template->err = AD_STEAL(err);
	}
	agentd_error_unref(err);
	/* Whoever is told may ask for others, and this one may have to go for them. */
	template_ref(template);
	tell_all(template);
	machine_free(AD_STEAL(template->machine));
	template_unref(template);
}

/* What its agent logs belongs to no task. */
static void machine_message(struct machine *machine, const struct ad_guest_msg *msg, void *userdata)
{
	(void)machine;
	(void)msg;
	(void)userdata;
}

static const struct machine_events machine_events = {
	.ready = machine_ready,
	.message = machine_message,
	.died = machine_died,
};

/* ---- making and finding one */

static int make(struct microvm *vm, const struct image *image, uint64_t memory_bytes,
		unsigned int tries, struct template **ret, agentd_error **reterr)
{
	struct template *template = calloc(1, sizeof(*template));
	int r;

	if (!template)
		return ad_fail_nomem(reterr);
	template->refs = 1;
	template->memory_bytes = memory_bytes;
	template->tries = tries;
	template->image = (struct image){
		.kernel = fcntl(image->kernel, F_DUPFD_CLOEXEC, 3),
		.initramfs = fcntl(image->initramfs, F_DUPFD_CLOEXEC, 3),
		.root = fcntl(image->root, F_DUPFD_CLOEXEC, 3),
	};
	template->memory = memfd_create("agentd-machine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	template->state_fd = memfd_create("agentd-machine-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ad_list_init(&template->watches);
	ad_list_init(&template->link);
	if (template->image.kernel < 0 || template->image.initramfs < 0 ||
	    template->image.root < 0 || template->memory < 0 || template->state_fd < 0)
		r = ad_fail_errno(reterr, errno, "the virtual machine's memory");
	else
		r = machine_new_template(vm, &template->image, memory_bytes, template->memory,
					 template->state_fd, &machine_events, template,
					 &template->machine, reterr);
	if (r < 0)
		template_unref(template);
	else
		*ret = template;
	return r;
}

static struct template *find(const struct microvm *vm, const struct image *image,
			     uint64_t memory_bytes)
{
	for (struct ad_list *node = vm->templates.next; node != &vm->templates; node = node->next) {
		struct template *template = AD_CONTAINER_OF(node, struct template, link);

		/* One that failed is tried again, as another. */
		if (template->state != TEMPLATE_FAILED && template->memory_bytes == memory_bytes &&
		    image_same(&template->image, image))
			return template;
	}
	return NULL;
}

/* The oldest goes, and who failed; who uses it has it still. */
static void make_room(struct microvm *vm)
{
	size_t count = 0;

	for (struct ad_list *node = vm->templates.next; node != &vm->templates; node = node->next)
		count++;
	for (struct ad_list *node = vm->templates.next, *next; node != &vm->templates;
	     node = next) {
		struct template *template = AD_CONTAINER_OF(node, struct template, link);

		next = node->next;
		if (template->state == TEMPLATE_FAILED ||
		    (template->state != TEMPLATE_BOOTING && count >= TEMPLATES_MAX)) {
			forget(template);
			count--;
		}
	}
}

int template_watch(struct microvm *vm, const struct image *image, uint64_t memory_bytes,
		   struct template_watch *watch, agentd_error **reterr)
{
	struct template *template = find(vm, image, memory_bytes);
	unsigned int tries = template ? template->tries : 0;
	int r;

	if (template && template->state == TEMPLATE_BROKEN && tries < TRIES_MAX)
		forget(AD_STEAL(template));
	if (!template) {
		make_room(vm);
		r = make(vm, image, memory_bytes, tries + 1, &template, reterr);
		if (r < 0)
			return r;
		ad_list_append(&vm->templates, &template->link);
	}
	watch->template = template_ref(template);
	ad_list_append(&template->watches, &watch->link);
	ad_defer_init(&watch->known_already, ad_launcher_loop(vm->launcher), known_already, watch);
	if (template->state != TEMPLATE_BOOTING)
		ad_defer(&watch->known_already);
	return 0;
}

void template_broken(struct template *template, agentd_error *err)
{
	agentd_error_unref(template->err);
	template->err = err;
	template->state = TEMPLATE_BROKEN;
	drop_memory(template);
}

void template_works(struct template *template)
{
	template->tries = 0;
}

void template_free_all(struct microvm *vm)
{
	while (!ad_list_empty(&vm->templates))
		forget(AD_CONTAINER_OF(vm->templates.next, struct template, link));
}
