#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# What OSS-Fuzz runs in its image: the repository's own recipe.
exec "$SRC/guestemu/fuzz/build.sh"
