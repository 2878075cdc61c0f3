"""The addresses of the example contract."""

from __future__ import annotations

from django.urls import path

from examples.django import views

urlpatterns = [
    path("login", views.sign_in),
    path("logout", views.sign_out),
    path("me", views.me),
    path("sessions", views.list_sessions),
    path("sessions/revoke-others", views.revoke_others),
    path("sessions/<str:id>/revoke", views.revoke),
    path("public", views.public),
    path("healthz", views.healthz),
]
