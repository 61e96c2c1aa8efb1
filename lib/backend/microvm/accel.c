/* SPDX-License-Identifier: MIT */
/* KVM or TCG. That /dev/kvm opens, that it has the right version and that it runs a few
 * instructions is also true where no ordinary kernel boots; so a machine that boots is the
 * only proof, and the first one is the trial. What came of it is kept until the machine
 * restarts. */
#include "backend/microvm/private.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "cache/cache.h"
#include "json/json.h"

#define CACHE_FILE "kvm.json"
#define KVM "/dev/kvm"

const char *accel_name(enum accel accel)
{
	return accel == ACCEL_KVM ? "kvm" : "tcg";
}

/* What the verdict stands on. */
static char *key_of(const struct microvm *vm)
{
	static const char *const files[] = { "vmlinux", "initramfs.cpio" };
	ad_autobuf struct ad_buf key = { 0 };

	ad_cache_key_text(&key, "/proc/sys/kernel/random/boot_id");
	ad_cache_key_text(&key, "/proc/sys/kernel/osrelease");
	ad_cache_key_file(&key, KVM);
	ad_cache_key_file(&key, vm->monitor);
	for (size_t i = 0; i < AD_COUNT(files); i++) {
		ad_autobuf struct ad_buf path = { 0 };

		ad_buf_printf(&path, "%s/%s", vm->image_dir, files[i]);
		if (!path.failed)
			ad_cache_key_file(&key, path.data);
	}
	return ad_buf_steal(&key);
}

static void set(struct microvm *vm, enum kvm_verdict verdict, const char *why)
{
	vm->kvm = verdict;
	ad_buf_free(&vm->kvm_reason);
	ad_buf_puts(&vm->kvm_reason, why);
}

void accel_load(struct microvm *vm)
{
	ad_autofree char *key = NULL;
	ad_autojson struct json_object *value = NULL;
	const struct json_object *usable, *reason;
	const char *text = "";
	bool yes = false;

	if (access(KVM, R_OK | W_OK) < 0) {
		set(vm, KVM_UNUSABLE,
		    errno == ENOENT ? "there is no " KVM :
				      "this user may not open " KVM ": add it to the group kvm");
		return;
	}
	key = key_of(vm);
	value = key ? ad_cache_load(NULL, CACHE_FILE, key) : NULL;
	if (value && ad_json_type_of(value) == AD_JSON_OBJECT &&
	    ad_json_member(value, "usable", &usable) &&
	    ad_json_get_bool(usable, "", &yes, NULL) == 0 &&
	    ad_json_member(value, "reason", &reason) &&
	    ad_json_get_string(reason, "", &text, NULL) == 0)
		set(vm, yes ? KVM_USABLE : KVM_UNUSABLE, text);
}

void accel_learn(struct microvm *vm, bool usable, const char *why)
{
	struct json_object *value = ad_json_object();
	ad_autofree char *key = key_of(vm);

	set(vm, usable ? KVM_USABLE : KVM_UNUSABLE, why);
	if (ad_json_add_bool(value, "usable", usable) && ad_json_add_string(value, "reason", why) &&
	    key)
		ad_cache_store(NULL, CACHE_FILE, key, value);
	else
		ad_json_free(value);
}
