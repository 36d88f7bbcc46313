# A Debian 12 image whose nodes deploy the folder "project" by themselves, as soon as user-data or a
# secret put /etc/onesync/project.token (mode 0600) there. For Packer 1.7 and later, which keep what makes
# an image in plugins: packer init . && packer build -var package=onesync_….deb -var … .
# Any other source (amazon-ebs, openstack, …) does as well, with its own plugin: what matters is the build
# block. Tried: the lines of the shell, on a booted node; the file without its first block, by 'packer
# validate' of 1.6, which knows no plugins yet. Not tried: a later Packer, the plugin, a build.
packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = "~> 1"
    }
  }
}

variable "package" {
  type        = string
  description = "The .deb file that 'make deb' made."
}

variable "base" {
  type        = string
  description = "A Debian 12 or 13 image with oneclient."
}

variable "base_checksum" {
  type = string
}

variable "password" {
  type        = string
  description = "Of the user debian in that image, who may use sudo."
}

source "qemu" "node" {
  iso_url          = var.base
  iso_checksum     = var.base_checksum
  disk_image       = true
  headless         = true
  ssh_username     = "debian"
  ssh_password     = var.password
  shutdown_command = "sudo systemctl poweroff"
}

build {
  sources = ["source.qemu.node"]

  provisioner "file" {
    source      = var.package
    destination = "/tmp/onesync.deb"
  }

  provisioner "file" {
    source      = "${path.root}/project.toml"
    destination = "/tmp/project.toml"
  }

  provisioner "shell" {
    execute_command = "sudo sh -eu '{{.Path}}'"
    inline = [
      "apt-get update",
      "apt-get install -y /tmp/onesync.deb",
      "useradd --create-home scipion",
      "install -m 644 /tmp/project.toml /etc/onesync/project.toml",
      "systemctl enable onesync@project",
    ]
  }
}
